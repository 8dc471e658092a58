"""`allim up`: what it writes, and that it starts everything, keeps it running and leaves nothing behind."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from supervisor.options import ServerOptions

from allim.up import layout, nginx, run, supervision
from allim.up.supervision import processes_in_session

PLAN = layout.Layout("127.0.0.1", 8000, (8001, 8005), Path("/data/redis.sock"), "unix:///data/redis.sock")


# -- nginx's configuration --------------------------------------------------------------------------------


def test_a_line_that_names_a_server_is_repeated_for_each() -> None:
    template = "upstream x {\n  server ${ALLIM_NGINX_SERVER} max_fails=0;\n}\n"

    conf = nginx.nginx_conf(template, listen="127.0.0.1:80", servers=["a:1", "b:2"])

    assert conf == "upstream x {\n  server a:1 max_fails=0;\n  server b:2 max_fails=0;\n}\n"


def test_nginx_variables_and_comments_stay_as_they_are() -> None:
    template = (
        "# ${ALLIM_NGINX_SERVER} is a replica\nlisten ${ALLIM_NGINX_LISTEN}; # at $host\nset $a '$uri$1${b}';\n"
    )

    conf = nginx.nginx_conf(template, listen="[::1]:80", servers=["a:1", "b:2"])

    assert conf == "# ${ALLIM_NGINX_SERVER} is a replica\nlisten [::1]:80; # at $host\nset $a '$uri$1${b}';\n"


def test_an_unknown_name_in_the_template_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        nginx.nginx_conf("${ALLIM_NGINX_LISTN}", listen="", servers=[])


# -- supervisord's configuration --------------------------------------------------------------------------


def parsed(folder: Path, conf: str) -> list[SimpleNamespace]:
    """The programs as supervisord itself understands them, in the order of their groups' priority."""
    (folder / "supervisord.conf").write_text(conf)
    options = ServerOptions()
    options.realize(["-c", str(folder / "supervisord.conf")])
    return [
        SimpleNamespace(
            group=group.name,
            name=program.name,
            command=shlex.split(program.command),
            environment=program.environment,
            stop_within_s=program.stopwaitsecs,
            stop_signal=signal.Signals(program.stopsignal).name,
        )
        for group in sorted(options.process_group_configs)
        for program in group.process_configs
    ]


def test_stopping_goes_from_the_replicas_over_nginx_to_redis(tmp_path: Path) -> None:
    programs = parsed(tmp_path, supervision.supervisord_conf(tmp_path, PLAN, 12.5, redis="/r", nginx="/n"))

    # supervisord starts in this order and stops in the reverse one
    assert [(program.group, program.name) for program in programs] == [
        ("redis", "redis"),
        ("nginx", "nginx"),
        ("replicas", "replica-1"),
        ("replicas", "replica-2"),
    ]
    assert [program.stop_signal for program in programs] == ["SIGTERM", "SIGQUIT", "SIGTERM", "SIGTERM"]
    assert [program.stop_within_s for program in programs] == [5, 5, 33, 33]


def test_replicas_differ_in_port_and_server_id_alone(tmp_path: Path) -> None:
    programs = parsed(tmp_path, supervision.supervisord_conf(tmp_path, PLAN, 20, redis="/r", nginx="/n"))[2:]

    serve = [sys.executable, "-m", "allim", "serve", "--host", "127.0.0.1", "--port"]
    assert [program.command for program in programs] == [[*serve, "8001"], [*serve, "8005"]]
    assert [program.environment for program in programs] == [
        {"ALLIM_SERVER_ID": "replica-1"},
        {"ALLIM_SERVER_ID": "replica-2"},
    ]


@pytest.mark.parametrize("odd", ["plain", "a b", "50%", "%(x)s", "a #b", "a ;b;", "it's #1", 'a"b', "a\\b", "ㅎ #"])
def test_odd_characters_in_paths_survive_supervisords_reading(tmp_path: Path, odd: str) -> None:
    folder = tmp_path / odd
    folder.mkdir()

    redis, nginx, *_ = parsed(
        tmp_path, supervision.supervisord_conf(folder, PLAN, 20, redis=f"/{odd}/redis", nginx="/n")
    )

    assert redis.command[0] == f"/{odd}/redis"
    assert redis.command[redis.command.index("--dir") + 1] == str(folder / "redis")
    assert nginx.command[nginx.command.index("-p") + 1] == str(folder / "nginx")


def test_a_redis_of_ones_own_is_used_instead_of_a_new_one(tmp_path: Path) -> None:
    plan = layout.make_layout(2, "127.0.0.1", free_port(), "redis://user:secret@redis.example:6379/1", tmp_path)

    programs = parsed(tmp_path, supervision.supervisord_conf(tmp_path, plan, 20, redis=None, nginx="/n"))

    assert [program.name for program in programs] == ["nginx", "replica-1", "replica-2"]
    assert layout.replica_environ(plan, {"ALLIM_SECRET_KEY": "k"})["ALLIM_REDIS_URL"] == plan.redis_url
    assert "redis      redis://user:***@redis.example:6379/1" in plan.summary()


# -- Ports, environment, words ----------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_wanted_ports_are_taken_where_free_and_replaced_where_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        wanted = [taken, free_port(), 65_536, 0]

        chosen = layout.choose_ports(wanted)

    assert chosen[1] == wanted[1]
    assert set(chosen).isdisjoint({taken, 65_536, 0})
    assert len(set(chosen)) == 4


def test_what_the_user_set_reaches_the_replicas(tmp_path: Path) -> None:
    environ = {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_DATABASE_URL": "x", "ODD": 'a%b"c #d'}

    first, second = (layout.replica_environ(PLAN, environ) for _ in range(2))

    assert first == second
    assert environ.items() <= first.items()
    assert first["ALLIM_REDIS_URL"] == PLAN.redis_url
    assert first["ALLIM_TRUSTED_PROXIES"] == "127.0.0.1"
    assert len(first["ALLIM_SECRET_KEY"]) >= 32


def test_trusted_proxies_that_the_user_set_are_those_in_front_of_nginx(tmp_path: Path) -> None:
    environ = {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_TRUSTED_PROXIES": "10.0.0.5, 10.1.0.9/16,::1"}
    shared = layout.replica_environ(PLAN, environ)

    trusted = layout.proxies_in_front(environ, shared)

    assert shared["ALLIM_TRUSTED_PROXIES"] == "127.0.0.1"
    assert layout.proxies_in_front({}, shared) == ()
    conf = nginx.nginx_conf("${ALLIM_NGINX_TRUSTED}", listen="", servers=[], trusted=trusted)
    assert conf == "set_real_ip_from 10.0.0.5/32; set_real_ip_from 10.1.0.0/16; set_real_ip_from ::1/128;\n"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("rediss://user:p@ss@h/0?ssl=1", "rediss://user:***@h/0?ssl=1"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_a_redis_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert layout.without_password(url) == shown


def test_addresses_to_listen_on_are_shown_as_addresses_to_open() -> None:
    plans = [layout.Layout(host, 80, (), None, "redis://x") for host in ("0.0.0.0", "::", "::1", "example.org")]

    pages = [plan.summary().splitlines()[0] for plan in plans]

    assert pages == [
        "page       http://127.0.0.1:80/",
        "page       http://[::1]:80/",
        "page       http://[::1]:80/",
        "page       http://example.org:80/",
    ]


def test_a_missing_program_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(layout.StartError, match=r"^no-such-thing is not installed$") as caught:
        layout.find_program("no-such-thing", {})

    assert "apt-get install" in caught.value.advice


def test_a_data_folder_whose_path_is_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(layout.StartError, match=r"^ALLIM_DATA_DIR: .* too long for a socket$"):
        layout.make_layout(2, "127.0.0.1", free_port(), None, tmp_path / ("x" * 100))


@pytest.mark.parametrize(
    ("environ", "port", "words"),
    [
        ({}, None, "cannot listen on 127.0.0.1:{port}: address already in use\n     → choose another with --port"),
        ({}, 70_000, "cannot listen on 127.0.0.1:{port}: there is no such port\n     → choose another"),
        ({"ALLIM_DRAIN_S": "soon"}, 0, "ALLIM_DRAIN_S: must be a number from 0 to 600\n"),
        (
            {"ALLIM_DURABILITY": "disk"},
            0,
            "ALLIM_DURABILITY is disk, and the Redis started here keeps nothing\n     → ",
        ),
        (
            {"ALLIM_DATABASE_URL": "postgresql://u:hunter2@127.0.0.1:1/x"},
            0,
            "ALLIM_DATABASE_URL: 127.0.0.1:1 refuses the connection\n     → start PostgreSQL there",
        ),
        (
            {"ALLIM_REDIS_URL": "rediss://127.0.0.1:1/0?ssl_ca_certs=/no/ca.pem"},
            0,
            "ALLIM_REDIS_URL: ssl_ca_certs in ALLIM_REDIS_URL names /no/ca.pem: no such file or directory\n     → ",
        ),
    ],
)
def test_what_cannot_start_says_in_two_lines_why_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], environ: dict[str, str], port: int | None, words: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = {None: other.getsockname()[1], 0: free_port()}.get(port, port)
        assert port is not None

        code = run(2, "127.0.0.1", port, {**environ, "ALLIM_DATA_DIR": str(tmp_path)})

    said = capsys.readouterr().err
    assert code == 1
    assert said.startswith("allim up: " + words.format(port=port))
    assert said.count("\n") <= 2
    assert "hunter2" not in said


# -- All of it, for real ----------------------------------------------------------------------------------


@dataclass
class Running:
    """An `allim up` that said it is ready."""

    process: subprocess.Popen[bytes]
    output: Path
    temporary: Path
    addresses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        until(lambda: "Ctrl-C to stop" in self.said() or self.process.poll() is not None, within_s=60)
        assert self.process.poll() is None, self.said()
        lines = [line.split() for line in self.said().splitlines()]
        self.addresses = {line[0]: line[1] for line in lines if len(line) == 2 and "://" in line[1]}
        (self.session,) = children(self.process.pid)

    def said(self) -> str:
        return self.output.read_text()

    def left(self) -> list[object]:
        """What should not be there after the end."""
        web = [address for address in self.addresses.values() if address.startswith("http")]
        ports = [int(address.split(":")[2].split("/")[0]) for address in web]
        return [*processes_in_session(self.session), *filter(accepts, ports), *self.temporary.iterdir()]


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: str) -> Running:
        (tmp_path / "tmp").mkdir()
        environ = {
            **os.environ,
            "TMPDIR": str(tmp_path / "tmp"),
            "ALLIM_DATA_DIR": str(tmp_path / "data"),
            "ALLIM_PULSE_S": "0.5",  # ready with the first pulse
            **settings,
        }
        environ.pop("ALLIM_REDIS_URL", None)
        with (tmp_path / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "allim", "up", "--replicas", "2", "--port", str(free_port())],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests may run under nohup
            )
        started.append(process)
        return Running(process, tmp_path / "output", tmp_path / "tmp")

    yield start
    for process in started:
        process.kill()  # what it started ends by itself; a test below proves it
        process.wait()


def until(condition: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def status(url: str) -> int | None:
    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code
    except httpx.TransportError:
        return None


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, its_parent = stat.read_text(errors="replace").rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it ended meanwhile
        if int(its_parent) == parent and state != "Z":
            found.append(int(stat.parent.name))
    return found


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def signed_in(page: str) -> dict[str, str]:
    account = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery staple"}
    answer = httpx.post(f"{page}api/accounts", json=account, timeout=60, trust_env=False)
    assert answer.status_code == 201, answer.text
    return {"Authorization": f"Bearer {answer.json()['token']}"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_drains_and_leaves_nothing_behind(start: Start, number: signal.Signals) -> None:
    running = start(ALLIM_DRAIN_S="2")
    page = running.addresses["page"]
    assert list(running.addresses) == ["page", "replica-1", "replica-2", "redis"]

    with httpx.stream("GET", f"{page}events", headers=signed_in(page), timeout=60, trust_env=False) as response:
        lines = response.iter_lines()
        assert "event: stream.open" in lines
        running.process.send_signal(number)
        rest = "\n".join(lines)

    assert "event: stream.close" in rest
    assert '"drain"' in rest
    assert running.process.wait(timeout=60) == 0
    assert running.left() == []


def test_a_killed_replica_is_started_again(start: Start) -> None:
    running = start()
    port = running.addresses["replica-2"].rpartition(":")[2]
    (pid,) = (pid for pid in processes_in_session(running.session) if f"--port {port}" in command_line(pid))

    os.kill(pid, signal.SIGKILL)

    until(lambda: pid not in processes_in_session(running.session))
    until(lambda: status(f"{running.addresses['replica-2']}/readyz") == 200)
    assert "replica-2" in running.said().partition("Ctrl-C to stop")[2]


def test_a_second_ctrl_c_ends_everything_at_once(start: Start) -> None:
    running = start(ALLIM_DRAIN_S="300")
    page = running.addresses["page"]
    with httpx.stream("GET", f"{page}events", headers=signed_in(page), timeout=60, trust_env=False) as response:
        assert "event: stream.open" in response.iter_lines()

        running.process.send_signal(signal.SIGINT)
        until(lambda: "stopping" in running.said())
        running.process.send_signal(signal.SIGINT)

        assert running.process.wait(timeout=60) == 130
    assert running.left() == []


def test_if_the_first_process_is_killed_the_rest_stops_in_order(start: Start) -> None:
    running = start(ALLIM_DRAIN_S="1")

    running.process.kill()
    running.process.wait()

    until(lambda: not running.left(), within_s=60)


def test_if_supervisord_is_killed_everything_ends_with_an_error(start: Start) -> None:
    running = start()

    os.kill(running.session, signal.SIGKILL)

    assert running.process.wait(timeout=60) == 1
    assert running.left() == []
    assert "supervisord ended unexpectedly" in running.said()


def test_no_secret_is_on_a_command_line_or_in_a_file(start: Start) -> None:
    secret = "a-secret-of-more-than-32-characters!"
    running = start(ALLIM_SECRET_KEY=secret)

    processes = [running.process.pid, *processes_in_session(running.session)]
    files = [path for path in running.temporary.rglob("*") if path.is_file()]

    assert len(processes) >= 6
    assert len(files) >= 3
    assert not [pid for pid in processes if secret in command_line(pid)]
    assert not [path for path in files if secret.encode() in path.read_bytes()]


def test_redis_is_reached_by_a_private_socket_alone_and_nobody_else_reads_what_is_made(start: Start) -> None:
    running = start()
    signed_in(running.addresses["page"])  # so that the database is written
    data = running.temporary.parent / "data"

    (redis,) = (pid for pid in processes_in_session(running.session) if "redis" in command_line(pid).split()[0])
    assert running.addresses["redis"] == f"unix://{data}/redis.sock"
    assert listening(redis) == set()
    made = [data, *data.rglob("*")]
    assert {path.name for path in made} >= {"redis.sock", "allim.db", "secret_key", "lock"}
    assert [str(path) for path in made if path.stat().st_mode & 0o077] == []
    others_may = {0o711, 0o700, 0o600} if os.geteuid() == 0 else {0o700, 0o600}
    modes = {path.name: path.stat().st_mode & 0o777 for path in running.temporary.rglob("*")}
    modes.pop("nginx.pid")  # nginx opens it with a mode of its own, and it holds a number
    assert {name: oct(mode) for name, mode in modes.items() if mode not in others_may} == {}


def listening(pid: int) -> set[str]:
    """The TCP addresses on which a process listens, as in /proc."""
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}
