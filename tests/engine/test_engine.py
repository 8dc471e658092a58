"""docker-compose.yml on a real engine, by `make compose-test`; elsewhere it is not run, and pytest says so."""

import asyncio
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from harness.followers import Follower, Load, following, publishing, statuses, topics_of, until_complete, until_open
from harness.replicas import ROOT, Reader, bearer, publish, token
from harness.servers import lasting_port
from harness.waiting import until, until_sync

from tests.engine.stack import Stack, changed, started

if not os.environ.get("ALLIM_COMPOSE_TEST"):
    pytest.skip("DOCKER-COMPOSE.YML IS NOT RUN HERE: `make compose-test` runs it", allow_module_level=True)

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]

REPLICAS = 3
FOLLOWERS = 30
PER_S = 40.0  # publishes
CALLS_PER_S = 20.0

logging.getLogger("httpx").setLevel(logging.WARNING)

figures = logging.getLogger("compose")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack("allim-test", "10.214.93", {"REPLICAS": str(REPLICAS), "TRUSTED_FRONT": "10.214.93.129"})
    with started(stack) as running:
        yield running


@pytest.fixture(autouse=True)
def whole(stack: Stack) -> Iterator[None]:
    """Each test finds all replicas."""
    yield
    changed(stack, REPLICAS=str(REPLICAS))
    if len(stack.ids("app")) != REPLICAS:
        stack.compose("up", "--detach", "--wait")


@asynccontextmanager
async def calling(url: str) -> AsyncIterator[list[int]]:
    """Ask for the page and for an account, one after the other; every status, and 0 for no answer."""
    got: list[int] = []

    async def call() -> None:
        async with httpx.AsyncClient(base_url=url, headers=bearer(token()), timeout=10, trust_env=False) as http:
            while True:
                for path in ("/", "/api/accounts/me"):
                    try:
                        got.append((await http.get(path)).status_code)
                    except httpx.TransportError:
                        got.append(0)
                    await asyncio.sleep(1 / CALLS_PER_S)

    task = asyncio.create_task(call())
    try:
        yield got
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def loaded(stack: Stack, name: str) -> AsyncIterator[tuple[list[Follower], Load, list[int]]]:
    """Followers, publishers and callers. At the end every follower has had every event."""
    async with following(stack.url, FOLLOWERS, name) as followers:
        async with publishing(stack.url, topics_of(followers), PER_S) as load, calling(stack.url) as calls:
            yield followers, load, calls
            await until_open(followers, 60)
        await until_complete(followers, load, 60)
        figures.info(
            "%s: %d publishes, refused %s; %d calls, failed %s; longest silence of a stream %.1f s",
            *(name, load.accepted, load.refused, len(calls), failed(calls), silence_s(followers)),
        )


def failed(calls: Sequence[int]) -> list[int]:
    return [status for status in calls if not 200 <= status < 500]


def silence_s(followers: Sequence[Follower]) -> float:
    """The longest time that a follower had no stream."""
    times = [0.0]
    for follower in followers:
        ended = None
        for connection in follower.connections:
            if ended is not None and connection.opened_at is not None:
                times.append(connection.opened_at - ended)
                ended = None
            ended = connection.ended_at if ended is None else ended
    return max(times)


async def in_background(stack: Stack, *words: str) -> str:
    return await asyncio.to_thread(stack.run, *words)


# -- Starting ------------------------------------------------------------------------------------------------


def test_it_is_made_from_nothing(stack: Stack) -> None:
    """Without images, containers and volumes; on an engine whose log driver is not json-file."""
    other = Stack("allim-test-nothing", "10.214.94")
    images = ("allim", "allim-nginx")
    for image in images:
        stack.run("docker", "tag", image, f"{image}:kept")
    stack.run("docker", "image", "rm", "--force", *images)

    try:
        other.compose("up", "--no-start")

        made = other.compose("ps", "--all", "--services").split()
    finally:
        other.down()
        for image in images:
            stack.run("docker", "tag", f"{image}:kept", image)
            stack.run("docker", "image", "rm", f"{image}:kept")
    assert sorted(made) == ["app", "nginx", "postgres", "redis", "secret"]


def test_another_up_leaves_the_replicas_as_they_are(stack: Stack) -> None:
    before = stack.ids("app")

    stack.compose("up", "--detach")

    assert len(before) == REPLICAS
    assert sorted(stack.ids("app")) == sorted(before)


@pytest.mark.parametrize("words", ["doctor --url http://nginx:8000", "token someone --operator"])
def test_the_command_line_works_in_a_replica(stack: Stack, words: str) -> None:
    answer = stack.compose("exec", "--no-TTY", "app", "allim", *words.split())

    if words.startswith("token"):
        who = answer.strip().splitlines()[-1]
        assert httpx.get(f"{stack.url}/api/keys", headers=bearer(who)).status_code == 200, answer


# -- Changing while it runs ----------------------------------------------------------------------------------


async def test_a_roll_fails_no_request(stack: Stack) -> None:
    before = stack.ids("app")
    changed(stack, ALLIM_RETRY_MS="1000")

    async with loaded(stack, "roll") as (followers, load, calls):
        started_at = time.monotonic()
        await in_background(stack, str(ROOT / "make/roll"))
        figures.info("roll of %d replicas: %.1f s", REPLICAS, time.monotonic() - started_at)

    assert load.refused == []
    assert failed(calls) == []
    assert statuses(followers) == {200}
    assert silence_s(followers) < 10
    after = stack.ids("app")
    assert len(after) == REPLICAS
    assert not set(after) & set(before)
    assert "ALLIM_RETRY_MS=1000" in stack.inspect(after[0])["Config"]["Env"]
    assert {c.close_reason for f in followers for c in f.connections if c.ended_at is not None} == {"drain"}


async def test_a_roll_to_replicas_that_do_not_start_leaves_the_old_ones(stack: Stack) -> None:
    before = stack.ids("app")
    changed(stack, ALLIM_LOG_LEVEL="loud")

    try:
        async with loaded(stack, "failed-roll") as (_, load, calls):
            told = await asyncio.to_thread(stack.run, str(ROOT / "make/roll"), check=False)
    finally:
        del stack.environ["ALLIM_LOG_LEVEL"]

    assert "ALLIM_LOG_LEVEL" in told
    assert "the old ones stay" in told
    assert sorted(stack.ids("app")) == sorted(before)
    assert (load.refused, failed(calls)) == ([], [])


async def test_removing_replicas_fails_no_request(stack: Stack) -> None:
    async with loaded(stack, "scale-down") as (followers, load, calls):
        for left in range(REPLICAS - 1, 0, -1):
            changed(stack, REPLICAS=str(left))
            await in_background(stack, "docker", "compose", "up", "--detach", "--no-recreate")
            await asyncio.sleep(5)  # the time in which nginx may still know the address

    assert load.refused == []
    assert failed(calls) == []
    assert silence_s(followers) < 8
    assert len(stack.ids("app")) == 1


async def test_a_replica_that_is_gone_at_once_is_left_within_a_second(stack: Stack) -> None:
    gone = stack.ids("app")[0]
    replica = stack.inspect(gone)["Config"]["Hostname"]

    async with loaded(stack, "kill") as (followers, load, calls):
        await in_background(stack, "docker", "rm", "--force", gone)
        killed_at = time.monotonic()
        await asyncio.sleep(5)

    lost = [f for f in followers if any(replica in str(c.opening["replica"]) for c in f.opened)]
    back = [
        c.opened_at - c.asked_at for f in lost for c in f.connections if c.opened_at and c.asked_at > killed_at - 1
    ]
    figures.info("kill: %d of %d streams lost, opened again within %.2f s of asking", len(lost), FOLLOWERS, max(back))
    assert lost
    assert max(back) < 2
    assert len(load.refused) + len(failed(calls)) <= 5  # what the replica had in hand


async def test_a_new_nginx_takes_over_within_seconds(stack: Stack) -> None:
    async with loaded(stack, "new-nginx") as (followers, load, calls):
        started_at = time.monotonic()
        await in_background(stack, "docker", "compose", "up", "--detach", "--no-deps", "--force-recreate", "nginx")
        took_s = time.monotonic() - started_at
    outage_s = len(load.refused) * 0.2 / 4  # four publishers try every 0.2 s
    figures.info("new nginx: the command took %.1f s, clients were kept out for about %.1f s", took_s, outage_s)

    assert took_s < 15
    assert silence_s(followers) < 15
    assert len(load.refused) + len(failed(calls)) < 300


# -- Networks and addresses ----------------------------------------------------------------------------------

FORGED = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
ASK = """
import urllib.error, urllib.request
request = urllib.request.Request("http://{to}:8000/api/accounts/me", headers={forged!r})
try:
    answer = urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    answer = error
print(answer.headers["x-request-id"], answer.headers["strict-transport-security"])
"""


def asked_from(stack: Stack, network: str, to: str) -> tuple[str, str]:
    """Ask with forged headers from a container in that network: the client's address as it was logged, and the
    transport security that was answered."""
    request_id, security = stack.python(network, ASK.format(to=to, forged=FORGED)).split(maxsplit=1)
    line = until_sync(lambda: stack.logged(request_id), what="the request's line")
    return str(line and line["client"]), security.strip()


@pytest.mark.parametrize("network", ["back", "out"])
def test_a_neighbour_that_forges_an_address_is_not_believed(stack: Stack, network: str) -> None:
    replica = stack.ids("app")[0]

    client, security = asked_from(stack, network, stack.address(replica, network))

    assert client != FORGED["X-Forwarded-For"]
    assert security == "None"


def test_a_front_on_this_machine_is_believed(stack: Stack) -> None:
    account = {"email": "front@example.org", "name": "Front", "password": "long enough"}

    answer = httpx.post(f"{stack.url}/api/accounts", json=account, headers=FORGED)

    assert answer.status_code == 201, answer.text
    assert "secure" in answer.headers["set-cookie"].lower()
    assert "strict-transport-security" in answer.headers
    line = until_sync(lambda: stack.logged(answer.headers["x-request-id"]), what="the request's line")
    assert line is not None
    assert line["client"] == FORGED["X-Forwarded-For"]


def test_what_is_no_front_is_not_believed_by_nginx(stack: Stack) -> None:
    client, security = asked_from(stack, "edge", "nginx")

    assert client.startswith(f"{stack.network}.")
    assert security == "None"


def test_a_scraper_finds_each_replica(stack: Stack) -> None:
    program = (
        "import socket, urllib.request as web\n"
        "for address in sorted({found[4][0] for found in socket.getaddrinfo('app', 8000)}):\n"
        "    print(web.urlopen(f'http://{address}:8000/metrics', timeout=5).read().decode())\n"
    )

    metrics = stack.python("out", program)

    assert len(set(re.findall(r'allim_replica_info{server_id="([^"]+)"}', metrics))) == REPLICAS


# -- TLS -----------------------------------------------------------------------------------------------------

STREAMS_OVER_ONE_CONNECTION = """
const [port, authorization, count] = process.argv.slice(1);
const session = require('node:http2').connect(`https://127.0.0.1:${port}`, {rejectUnauthorized: false});
let open = 0;
for (let i = 0; i < count; i++) {
  const stream = session.request({':path': '/events', authorization});
  stream.once('data', () => { if (++open == count) { console.log(session.alpnProtocol, open); process.exit(0); } });
}
setTimeout(() => { console.log(session.alpnProtocol, open); process.exit(1); }, 20000);
"""


def write_certificate(folder: Path) -> int:
    """A certificate that signs itself, readable by nginx in the container; its serial number."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    begin = datetime.now(UTC) - timedelta(days=1)
    signed = builder.not_valid_before(begin).not_valid_after(begin + timedelta(days=30)).sign(key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    (folder / "fullchain.pem").write_bytes(signed.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "privkey.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    for file in folder.iterdir():
        shutil.chown(file, 101, 101)
        file.chmod(0o400)
    return signed.serial_number


def served_serial(port: int) -> int:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as wrapped:
        der = wrapped.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


async def test_the_profile_tls_serves_https_and_http_2(stack: Stack, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    first = write_certificate(tmp_path)
    port = lasting_port()
    changed(stack, TLS_CERTIFICATES=str(tmp_path), TLS_PORT=str(port), TLS_BIND="127.0.0.1", COMPOSE_PROFILES="tls")
    url = f"https://127.0.0.1:{port}"
    try:
        stack.compose("up", "--detach", "--wait")

        async with httpx.AsyncClient(base_url=url, verify=False, timeout=20, trust_env=False) as http:
            account = {"email": "tls@example.org", "name": "TLS", "password": "long enough"}
            answer = await http.post("/api/accounts", json=account, headers={"X-Forwarded-For": "203.0.113.7"})
            assert answer.status_code == 201, answer.text
            assert "secure" in answer.headers["set-cookie"].lower()
            assert "strict-transport-security" in answer.headers
            line = await until(lambda: stack.logged(answer.headers["x-request-id"]), what="the request's line")
            assert line is not None
            assert line["client"] != "203.0.113.7"

            authorization = bearer(token("tls"))["authorization"]
            words = ["node", "-e", STREAMS_OVER_ONE_CONNECTION, str(port), authorization, "12"]
            assert (await in_background(stack, *words)).split() == ["h2", "12"]

            async with http.stream("GET", "/events", headers=bearer(token("renewed"))) as stream:
                chunks = stream.aiter_text()
                assert "stream.open" in await anext(chunks)
                second = write_certificate_anew(tmp_path)
                await in_background(stack, "docker", "compose", "kill", "--signal", "HUP", "tls")
                await until(lambda: served_serial(port) == second, what="the new certificate")
                publish(stack.url, {"topic": "user:renewed", "type": "t", "data": "still here"})
                assert "still here" in await anext(chunks)
        assert first != second
    finally:
        for name in ("TLS_CERTIFICATES", "TLS_PORT", "TLS_BIND", "COMPOSE_PROFILES"):
            stack.environ.pop(name)
        stack.compose("--profile", "tls", "rm", "--stop", "--force", "tls")


def write_certificate_anew(folder: Path) -> int:
    for file in folder.iterdir():
        file.unlink()
    return write_certificate(folder)


# -- Stopping, backup and restore ----------------------------------------------------------------------------


async def test_stopping_everything_tells_each_stream(stack: Stack) -> None:
    readers = [await Reader.open(stack.url, token(f"stop-{number}")) for number in range(FOLLOWERS)]
    for reader in readers:
        await reader.next("stream.open")

    stopping = asyncio.create_task(in_background(stack, "docker", "compose", "stop"))
    last = []
    for reader in readers:
        async with reader:
            last.append((await reader.rest(timeout_s=60))[-1])
    await stopping
    stack.compose("up", "--detach", "--wait")

    assert {(message.type, message.data["reason"]) for message in last} == {("stream.close", "drain")}


def commands(title: str) -> list[str]:
    """The shell blocks below a heading of docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text()
    found = re.search(rf"^#+ {title}\n(.*?)^#", text, re.MULTILINE | re.DOTALL)
    assert found
    return re.findall(r"```sh\n(.*?)```", found[1], re.DOTALL)


def test_a_backup_is_restored_as_the_docs_say(stack: Stack, tmp_path: Path) -> None:
    """The very commands of docs/operations.md: accounts, the secret key and ended sessions are there again."""
    account = {"email": "backup@example.org", "name": "Backup", "password": "long enough"}
    made = httpx.post(f"{stack.url}/api/accounts", json=account)
    assert made.status_code == 201, made.text
    kept, ended = made.json()["token"], sign_in(stack, account)
    assert httpx.delete(f"{stack.url}/api/session", headers=bearer(ended)).status_code < 300
    backup, restore = commands("Backup and restore")

    stack.run("sh", "-euxc", backup, cwd=tmp_path)
    stack.down()
    stack.run("sh", "-euxc", restore, cwd=tmp_path)
    stack.compose("up", "--detach", "--wait")

    assert who_is(stack, kept) == 200
    assert who_is(stack, ended) == 401
    assert who_is(stack, sign_in(stack, account)) == 200


def sign_in(stack: Stack, account: dict[str, str]) -> str:
    answer = httpx.post(f"{stack.url}/api/session", json={key: account[key] for key in ("email", "password")})
    assert answer.status_code < 300, answer.text
    return str(answer.json()["token"])


def who_is(stack: Stack, who: str) -> int:
    return httpx.get(f"{stack.url}/api/accounts/me", headers=bearer(who)).status_code
