"""Who may do what in Redis, and over what: the user that docker-compose.yml makes, and TLS."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import redis as redis_py
from harness.replicas import Reader, Replica, launch_replica, publish, replica
from harness.servers import end, lasting_port, redis_server
from harness.waiting import START_S, until_sync
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.brokers.guarded import PASSWORD, Guarded, guarded_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with guarded_redis() as guarded:
        yield guarded


# -- The user ---------------------------------------------------------------------------------------------


async def test_the_user_of_compose_can_do_all_that_a_replica_does(guarded: Guarded) -> None:
    with replica(redis_url=guarded.url, heartbeat_s=1, pulse_s=0.2) as running:
        await use(running)

    assert guarded.denied() == []


async def use(running: Replica) -> None:
    """What a replica asks of Redis: the queue, events, history, streams, sessions, limits."""
    ada = {"email": "ada@example.org", "name": "Ada", "password": "correct horse battery"}
    async with httpx.AsyncClient(base_url=running.url) as client:
        created = await client.post("/api/accounts", json=ada)
        account = created.json()
        async with await Reader.open(running.url, account["token"]) as reader:
            if "snapshots.generated" not in [message.type for message in reader.messages]:
                await reader.next("snapshots.generated")
            event = {"topic": f"user:{account['account']['id']}", "type": "t", "data": 1}
            for key in ("one", "one", "two"):
                answer = publish(running.url, event, idempotency_key=key)
                assert answer.status_code == 202, answer.text
            last = (await reader.next("t")).id
            async with await Reader.open(running.url, account["token"], last_event_id=last) as again:
                assert (await again.next("stream.open")).data["replayed"] == 1
            wrong = {"email": ada["email"], "password": "wrong horse battery"}
            assert (await client.post("/api/session", json=wrong)).status_code == 401
            headers = {"authorization": f"Bearer {account['token']}"}
            assert (await client.delete("/api/session", headers=headers)).status_code == 204
            assert (await reader.next("stream.close")).data["reason"] == "signed_out"


def test_its_healthcheck_says_whether_it_answers(guarded: Guarded) -> None:
    kind, command = guarded.service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"

    def status(**environ: str) -> int:
        return subprocess.run(["/bin/sh", "-c", command], env={**guarded.environ, **environ}).returncode

    assert (status(), status(REDISCLI_AUTH="wrong")) == (0, 1)


def test_no_process_shows_the_password(guarded: Guarded) -> None:
    pid = guarded.admin.info("server")["process_id"]

    assert PASSWORD not in Path(f"/proc/{pid}/cmdline").read_text()


KEY = "allim:{0}:"


@pytest.mark.parametrize(
    "command",
    [
        ("SET", KEY + "revoked:s", "1", "EX", "9"),
        ("GET", KEY + "revoked:s"),
        ("EXISTS", KEY + "ticket:t"),
        ("SET", KEY + "ticket:t", "1", "NX", "EX", "9"),
        ("ZADD", KEY + "streams:42", "1", "a"),
        ("ZREMRANGEBYSCORE", KEY + "streams:42", "-inf", "1"),
        ("ZPOPMIN", KEY + "streams:42"),
        ("ZREVRANGE", KEY + "streams:42", "0", "0", "WITHSCORES"),
        ("ZRANGEBYSCORE", KEY + "expiry", "-inf", "1", "LIMIT", "0", "9"),
        ("PERSIST", KEY + "history:a"),
        ("UNLINK", KEY + "history:a", KEY + "history:b"),
        ("ZREM", KEY + "streams:42", "a"),
        ("ZCARD", KEY + "streams:42"),
        ("EXPIRE", KEY + "rate:user:42", "9"),
        ("TIME",),
        ("SUBSCRIBE", KEY + "topic:user:42"),
        ("WAIT", "1", "10"),
        ("CONFIG", "GET", "*append*"),
        ("ACL", "DRYRUN", "default", "HSET", KEY + "clock", "ms", "1"),
        ("CLIENT", "SETNAME", "allim-replica-1"),
    ],
)
def test_it_may(guarded_once: Guarded, command: tuple[str, ...]) -> None:
    assert guarded_once.do("ACL", "DRYRUN", "allim", *command) == "OK"


@pytest.mark.parametrize(
    "command",
    [
        ("GET", "other:{0}:clock"),
        ("GET", "allim:{1}:clock"),
        ("SUBSCRIBE", "other:{0}:topic:a"),
        ("PUBLISH", "other", "x"),
        ("PSUBSCRIBE", "*"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("SHUTDOWN",),
        ("MONITOR",),
        ("CONFIG", "SET", "appendonly", "no"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("CLIENT", "PAUSE", "9000"),
        ("CLIENT", "LIST"),
        ("REPLICAOF", "evil.example", "6379"),
        ("DEBUG", "SLEEP", "1"),
        ("ACL", "LIST"),
        ("SCRIPT", "FLUSH"),
        ("FUNCTION", "FLUSH"),
        ("MODULE", "LIST"),
        ("SLOWLOG", "GET"),
    ],
)
def test_it_may_not(guarded_once: Guarded, command: tuple[str, ...]) -> None:
    assert "no permissions" in guarded_once.do("ACL", "DRYRUN", "allim", *command)


@pytest.mark.parametrize(
    ("user", "password"), [(None, None), ("default", ""), ("default", PASSWORD), ("allim", ""), ("allim", "wrong")]
)
def test_nobody_gets_in_without_the_password(guarded_once: Guarded, user: str | None, password: str | None) -> None:
    port = guarded_once.admin.connection_pool.connection_kwargs["port"]
    once = Retry(NoBackoff(), 0)
    nobody = redis_py.Redis(port=port, username=user, password=password, retry=once)
    with nobody, pytest.raises(redis_py.AuthenticationError):
        nobody.ping()


@pytest.fixture(scope="module")
def guarded_once() -> Iterator[Guarded]:
    """For tests that only look."""
    with guarded_redis() as guarded:
        yield guarded


@pytest.fixture(scope="module")
def running(guarded_once: Guarded) -> Iterator[Replica]:
    with replica(redis_url=guarded_once.url, heartbeat_s=1, pulse_s=0.2) as running:
        yield running


@contextmanager
def deprived(guarded: Guarded, running: Replica, command: str) -> Iterator[None]:
    """The user may not use a command, and all its connections are made anew; in the end it may again."""
    guarded.do("ACL", "SETUSER", "allim", f"-{command}")
    guarded.do("ACL", "LOG", "RESET")
    guarded.do("CLIENT", "KILL", "USER", "allim")
    try:
        yield
    finally:
        guarded.do("ACL", "SETUSER", "allim", f"+{command}")
        running.until_ready()


@pytest.mark.parametrize("command", ["info", "eval", "evalsha", "subscribe"])
def test_without_a_command_it_is_not_ready_and_the_log_names_it(
    guarded_once: Guarded, running: Replica, command: str
) -> None:
    with deprived(guarded_once, running, command):
        until_sync(lambda: not_ready(running), what="red")
        said = f"this user has no permissions to run the '{command}' command"
        until_sync(lambda: said in running.log.read_text(), what=said)


@pytest.mark.parametrize("command", ["time", "hmget", "publish"])
def test_without_a_command_of_a_script_readiness_and_the_log_name_it(
    guarded_once: Guarded, running: Replica, command: str
) -> None:
    with deprived(guarded_once, running, command):
        until_sync(lambda: f"+{command}" in checks(running).get("redis", ""), what="red")

    assert f"this Redis user lacks rights: ACL SETUSER … +{command}" in running.log.read_text()


def checks(running: Replica) -> dict[str, str]:
    """The checks of `/readyz`; none while it is ready."""
    answer = httpx.get(f"{running.url}/readyz", timeout=60)
    found: dict[str, str] = answer.json()["checks"] if answer.status_code == 503 else {}
    return found


def not_ready(running: Replica) -> bool:
    answer = httpx.get(f"{running.url}/readyz", timeout=60)
    return answer.status_code == 503 and "hub" in answer.text


# -- TLS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="allim-tls-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """A certificate that vouches for itself, with its key beside it."""
    return certificate(folder, "ours")


def certificate(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pem"
    made = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2 -subj /CN={name}"
    where = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path.with_suffix(".key")), "-out", str(path)]
    subprocess.run(["openssl", *made.split(), *where], check=True, capture_output=True)
    return path


def tls(port: int, cert: Path) -> list[str]:
    words = f"--tls-port {port} --tls-cert-file {cert} --tls-key-file {cert.with_suffix('.key')}"
    return [*words.split(), "--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no"]


@pytest.fixture(scope="module")
def tls_port(ours: Path) -> Iterator[int]:
    """Where a Redis speaks TLS."""
    port = lasting_port()
    with redis_server(*tls(port, ours)):
        yield port


async def test_a_replica_works_over_tls(tls_port: int, ours: Path) -> None:
    url = f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={ours}"
    with replica(redis_url=url, heartbeat_s=1, pulse_s=0.2) as running:
        await use(running)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://127.0.0.1:{port}/0?ssl_ca_certs={wrong}", "is not trusted: self"),
        ("rediss://127.0.0.1:{port}/0", "is not trusted: self"),  # the system's own do not know it either
        ("rediss://localhost:{port}/0?ssl_ca_certs={ours}", "is not trusted: Hostname mismatch"),
    ],
)
def test_a_server_that_nobody_vouches_for_stops_the_start_in_two_lines(
    tls_port: int, ours: Path, folder: Path, url: str, said: str
) -> None:
    filled_in = url.format(port=tls_port, ours=ours, wrong=certificate(folder, "wrong"))
    home = Path(tempfile.mkdtemp(prefix="allim-replica-"))
    running = launch_replica(home, redis_url=filled_in, heartbeat_s=1, pulse_s=0.2)
    try:
        assert running.process.wait(START_S) == 2
        what, advice = running.log.read_text().splitlines()
    finally:
        running.end()
        shutil.rmtree(home)

    assert what.startswith("allim: ALLIM_REDIS_URL: the certificate of ")
    assert said in what
    assert "ssl_ca_certs" in advice


async def test_sentinels_and_redis_over_tls(
    tls_port: int, ours: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = lasting_port()
    conf = folder / "sentinel.conf"
    words = ["--port 0", "--bind 127.0.0.1", f"--dir {folder}", "--tls-replication yes", *tls(port, ours)]
    options = " ".join(words).replace("--", "\n")
    conf.write_text(f"{options}\nsentinel monitor allim 127.0.0.1 {tls_port} 1\n")
    monkeypatch.setenv("SSL_CERT_FILE", str(ours))  # what the system trusts
    sentinel = subprocess.Popen(["redis-server", str(conf), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        url = f"rediss+sentinel://127.0.0.1:{port}/allim"
        with replica(redis_url=url, redis_prefix="sentinels", heartbeat_s=1, pulse_s=0.2) as running:
            await use(running)
    finally:
        end(sentinel)
