"""The system while it runs: readiness, output, signals and the end."""

import http.client
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NamedTuple

import click

from allim.up.layout import LOOPBACK, Layout, address, named_replicas, reachable
from allim.up.supervision import STOP_MARGIN_S, end_session

READY_WITHIN_S = 30.0


def run_supervised(folder: Path, layout: Layout, environ: Mapping[str, str], stop: "Stop") -> int:
    supervisor = subprocess.Popen(
        [sys.executable, "-m", "allim.up", str(folder), str(os.getpid())],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,  # other users may not read the files that they make
    )
    assert supervisor.stdout is not None
    pump = threading.Thread(target=_pass_on, args=(supervisor.stdout,), name="output", daemon=True)
    try:
        pump.start()
        stop.watch(supervisor)
        missing = _wait_until_ready(supervisor, layout, stop)
        late = False
        if missing is not None and supervisor.poll() is None and not stop.asked:
            late = True
            click.echo(f"allim up: {missing.name} was not ready within {READY_WITHIN_S:.0f} s", err=True)
            click.echo(f"     → {missing.reason}", err=True)
            supervisor.terminate()
        elif missing is None:
            click.echo(layout.summary())
        supervisor.wait()
        if not (late or stop.asked):
            click.echo("allim up: supervisord ended unexpectedly; everything is stopped", err=True)
        return stop.exit_code()
    finally:
        supervisor.kill()  # has ended long ago, unless an error led here
        supervisor.wait()
        end_session(supervisor.pid)
        pump.join(timeout=2)


class Stop:
    """Turns signals into the end of supervisord, while it is entered."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)

    def __init__(self, drain_s: float) -> None:
        self.asked = False
        self.hurried = False
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._drain_s = drain_s

    def __enter__(self) -> "Stop":
        # Under nohup SIGHUP is ignored, and stays so.
        caught = [number for number in self.SIGNALS if number != signal.SIGHUP or not _ignored(number)]
        self._before = {number: signal.signal(number, self._on_signal) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, supervisor: subprocess.Popen[bytes]) -> None:
        """Stop this process at a signal, at once if the signal came before."""
        self._supervisor = supervisor
        if self.asked:
            supervisor.terminate()

    def exit_code(self) -> int:
        """Return the exit code; 130 is the shell's number for "ended by Ctrl-C"."""
        if self.hurried:
            return 130
        return 0 if self.asked else 1

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            signal.alarm(
                math.ceil(self._drain_s) + STOP_MARGIN_S + 20
            )  # past every stopwaitsecs: supervisord itself hangs
            _say_now("\nstopping: streams are drained first; Ctrl-C again ends everything at once\n")
            if self._supervisor:
                self._supervisor.terminate()
        elif number in (signal.SIGINT, signal.SIGALRM):
            self.hurried = True
            if self._supervisor:
                self._supervisor.kill()


class _Missing(NamedTuple):
    """A process that is not ready, and its reason."""

    name: str
    reason: str


def _wait_until_ready(supervisor: subprocess.Popen[bytes], layout: Layout, stop: Stop) -> _Missing | None:
    """Wait until all are ready. Returns None, or the first one that is not."""
    waiting = [(name, LOOPBACK, port) for name, port in named_replicas(layout.replica_ports)]
    waiting.append(("nginx", reachable(layout.host), layout.port))
    deadline = time.monotonic() + READY_WITHIN_S
    reason = ""
    while waiting and time.monotonic() < deadline and supervisor.poll() is None and not stop.asked:
        if (reason := _why_not_ready(*waiting[0][1:])) == "":
            waiting.pop(0)
        else:
            time.sleep(0.1)
    return _Missing(waiting[0][0], reason) if waiting else None


def _why_not_ready(host: str, port: int) -> str:
    """Ask for readiness. Returns the reason against it, or ""."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        if answer.status == 200:
            return ""
        checks = json.loads(answer.read()).get("checks", {})
        return "; ".join(f"{name}: {said}" for name, said in checks.items() if said != "ok")
    except OSError as error:
        return f"{address(host, port)}: {(error.strerror or str(error)).lower()}; the log above may say more"
    except (http.client.HTTPException, ValueError, AttributeError):
        return f"{address(host, port)}/readyz does not answer as a replica does"
    finally:
        connection.close()


def _pass_on(output: BinaryIO) -> None:
    """Copy the output of the processes to standard output; read on if that is closed, so that none of them blocks."""
    for line in output:
        with suppress(OSError, ValueError):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def _say_now(text: str) -> None:
    """Write to standard output without Python's buffers, which a signal handler must not enter."""
    with suppress(OSError):
        os.write(1, text.encode())


def _ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
