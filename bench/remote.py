"""The generator in a process of its own, so that it has a core of its own and its CPU time is known."""

import multiprocessing
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import cast

from bench.generator import Failure, Generator, Load, Opened, Outcome, System

# Forked, not spawned: what makes a contender's requests comes along as it is, tokens and all.
_fork = multiprocessing.get_context("fork")


class Remote:
    """Calls the generator. Between calls it goes on reading its streams.

    Raises: Failure, from every call, as the generator does.
    """

    def __init__(self, pipe: Connection, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid

    def begin(self, method: str, *args: object, **named: object) -> None:
        """Call, and do not wait."""
        self._pipe.send((method, args, named))

    def end(self) -> object:
        """Wait for the call's answer."""
        answer = self._pipe.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _call(self, method: str, *args: object, **named: object) -> object:
        self.begin(method, *args, **named)
        return self.end()

    def prepare(self, first_user: int, streams: int) -> None:
        self._call("prepare", first_user, streams)

    def open(self, first_user: int, streams: int, *, at_once: int = 64, last_event_id: bytes | None = None) -> Opened:
        return cast(Opened, self._call("open", first_user, streams, at_once=at_once, last_event_id=last_event_id))

    def close(self, first_user: int, streams: int) -> None:
        self._call("close", range(first_user, first_user + streams))

    def give_way(self) -> None:
        """From now on, let other processes go first."""
        os.setpriority(os.PRIO_PROCESS, self.pid, 10)

    def drive(self, load: Load, first_user: int, streams: int) -> Outcome:
        return cast(Outcome, self._call("drive", load, first_user, streams))

    def outcome(self) -> Outcome:
        """Of the drive that was begun."""
        return cast(Outcome, self.end())

    def drive_expected(self) -> Outcome:
        return cast(Outcome, self._call("drive_expected"))

    def first_id(self) -> bytes | None:
        return cast(bytes | None, self._call("first_id"))


@contextmanager
def generator(system: System, *, first_number: int = 1, ignored_below: int = 0) -> Iterator[Remote]:
    """A generator for this system, until the context ends."""
    here, there = _fork.Pipe()
    process = _fork.Process(target=_serve, args=(there, here, system, first_number, ignored_below))
    process.start()
    there.close()
    assert process.pid is not None
    try:
        yield Remote(here, process.pid)
    finally:
        here.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(pipe: Connection, other: Connection, system: System, first: int, ignored_below: int) -> None:
    other.close()
    made = Generator(system, first_number=first, ignored_below=ignored_below)
    while True:
        while not select.select([pipe], [], [], 0)[0]:
            made.idle(0.02)
        try:
            method, args, named = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(made, method)(*args, **named))
        except Failure as failure:
            pipe.send(failure)
