"""docs/proxies.md: its configurations run as they stand there, in front of two replicas and allim's nginx.

One history for all proxies at the same time, in a fixture: streams of every proxy go through the same faults.
"""

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.deployment import Deployment, deployment
from harness.followers import TYPE, Follower, following, publishing, statuses, topics_of, until_complete
from harness.replicas import Reader, publish, token
from harness.waiting import START_S, until, until_sync

from tests.others.pages import blocks
from tests.others.proxies import KINDS, PATIENCE_S, Proxy, missing, proxy, require

pytestmark = pytest.mark.timeout(600)  # the history is the first test's

BLOCKS = blocks("proxies.md")
EACH = 2  # streams over each proxy
IN_TIME_S = 12.0  # for one event on a busy machine
SETTLED_S = 40.0
CLIENT = "127.0.0.77"  # an address of this machine that no proxy has
FORGED = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "Forwarded": "for=6.6.6.6"}

each_proxy = pytest.mark.parametrize("name", list(KINDS))


@dataclass
class Seen:
    """What was seen over one proxy. Shape: `lost` says which events its streams missed or got twice."""

    proxy: Proxy
    followers: list[Follower]
    late: list[str] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    lost: str = ""
    without_replicas: bool = False
    without_nginx: bool = False

    def said(self) -> str:
        connections = [(c.status, c.close_reason, len(c.frames)) for f in self.followers for c in f.connections]
        return f"{self.proxy.name}: {connections}\n{self.proxy.log.read_text(errors='replace')[-2000:]}"


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployment]:
    settings: dict[str, Any] = {"heartbeat_s": 1, "retry_ms": 500, "drain_s": 1, "stream_lifetime_s": 600}
    with deployment(2, proxied=False, nginx_trusted=["127.0.0.1"], **settings) as started:
        yield started


@pytest.fixture(scope="module")
def proxies(deployed: Deployment) -> Iterator[dict[str, Proxy]]:
    assert deployed.nginx is not None
    folder = Path(tempfile.mkdtemp(prefix="allim-proxies-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield {
            name: stack.enter_context(proxy(name, BLOCKS[name], folder / str(number), allim_port=deployed.nginx.port))
            for number, name in enumerate(KINDS)
            if not missing(name)
        }


@pytest.fixture(scope="module")
def history(deployed: Deployment, proxies: dict[str, Proxy]) -> dict[str, Seen]:
    return asyncio.run(_history(deployed, list(proxies.values())))


async def _history(deployed: Deployment, proxies: list[Proxy]) -> dict[str, Seen]:
    async with following(lambda number: proxies[number // EACH].url, EACH * len(proxies), "proxied") as followers:
        seen = [Seen(proxy, followers[number * EACH : (number + 1) * EACH]) for number, proxy in enumerate(proxies)]
        await _quiet(deployed, seen)
        async with publishing(deployed.urls, topics_of(followers), per_s=20) as load:
            await _faults(deployed, seen)
        for each in seen:
            try:
                await until_complete(each.followers, load)
            except AssertionError as error:
                each.lost = str(error)[:2000]
    return {each.proxy.name: each for each in seen}


async def _quiet(deployed: Deployment, seen: list[Seen]) -> None:
    """Events one by one, and then nothing but heartbeats for longer than a proxy waits."""
    began = time.monotonic()
    for number in range(3):
        answer = await asyncio.to_thread(
            publish, deployed.urls[0], {"topic": "system", "type": "quiet", "data": number}
        )
        position = answer.json()["id"]

        def has(follower: Follower, position: str = position) -> bool:
            return any(frame.message.id == position for frame in follower.now.frames)

        await _settled(lambda: all(has(follower) for each in seen for follower in each.followers), IN_TIME_S)
        for each in seen:
            each.late += [position for follower in each.followers if not has(follower)]
    await asyncio.sleep(max(0, began + PATIENCE_S + 2 - time.monotonic()))
    for each in seen:
        each.held = [len(follower.connections) for follower in each.followers]


async def _faults(deployed: Deployment, seen: list[Seen]) -> None:
    first, second = deployed.replicas
    assert deployed.nginx is not None

    first.kill()
    await _settled(lambda: all(_open_since(f, 0) for each in seen for f in each.followers))
    first.start()
    await asyncio.to_thread(first.until_ready)

    await asyncio.to_thread(second.drain, START_S)
    await _settled(lambda: all(_open_since(f, 0) for each in seen for f in each.followers))

    since = time.monotonic()
    first.kill()
    await _settled(lambda: all(_came_to_nobody(f, since) for each in seen for f in each.followers))
    for each in seen:
        each.without_replicas = all(_came_to_nobody(f, since) for f in each.followers)
    first.start()
    second.start()
    await asyncio.gather(*(asyncio.to_thread(replica.until_ready) for replica in deployed.replicas))
    await _settled(lambda: all(_open_since(f, since) for each in seen for f in each.followers))

    since = time.monotonic()
    deployed.nginx.kill()
    await _settled(lambda: all(_came_to_nobody(f, since) for each in seen for f in each.followers))
    for each in seen:
        each.without_nginx = all(_came_to_nobody(f, since) for f in each.followers)
    await asyncio.to_thread(deployed.nginx.start)
    await _settled(lambda: all(_open_since(f, since) for each in seen for f in each.followers))


async def _settled(condition: Callable[[], bool], within_s: float = SETTLED_S) -> None:
    """Wait for all proxies, but for none longer than that: the tests say which of them did not do it."""
    with suppress(AssertionError):
        await until(condition, within_s)


def _open_since(follower: Follower, moment: float) -> bool:
    return follower.open and follower.now.asked_at >= moment


def _came_to_nobody(follower: Follower, since: float) -> bool:
    """Whether it was told when to come back, and nothing else."""
    later = [connection for connection in follower.connections if connection.asked_at >= since]
    return any(connection.status == 200 and connection.ended_at and not connection.frames for connection in later)


@each_proxy
def test_events_come_one_by_one_and_a_silent_stream_is_held(history: dict[str, Seen], name: str) -> None:
    require(name)
    seen = history[name]

    assert (seen.late, seen.held) == ([], [1] * EACH), seen.said()


@each_proxy
def test_streams_are_told_when_to_come_back_while_nobody_serves_them(history: dict[str, Seen], name: str) -> None:
    require(name)
    seen = history[name]

    assert (seen.without_replicas, seen.without_nginx) == (True, True), seen.said()


@each_proxy
def test_no_answer_but_200_and_every_event_once_and_in_order(history: dict[str, Seen], name: str) -> None:
    require(name)
    seen = history[name]

    assert seen.lost == "", seen.said()
    assert statuses(seen.followers) == {200}, seen.said()


@each_proxy
def test_a_stream_is_not_compressed(
    history: dict[str, Seen], proxies: dict[str, Proxy], deployed: Deployment, name: str
) -> None:
    require(name)

    async def listen() -> dict[str, str]:
        url = proxies[name].url
        async with await Reader.open(url, token("compressed"), accept_encoding="gzip, br, deflate, zstd") as stream:
            await stream.next("stream.open")
            deployed.replicas[0].publish(("user:compressed", TYPE, name))
            assert (await stream.next(TYPE)).data == name
            return stream.headers

    headers = asyncio.run(listen())

    assert "content-encoding" not in headers
    assert headers["content-type"].startswith("text/event-stream")
    assert "no-transform" in headers["cache-control"]


@each_proxy
def test_the_clients_address_arrives_and_a_forged_one_does_not(
    history: dict[str, Seen], proxies: dict[str, Proxy], deployed: Deployment, name: str
) -> None:
    require(name)
    with httpx.Client(transport=httpx.HTTPTransport(local_address=CLIENT), headers=FORGED) as client:
        answer = client.get(f"{proxies[name].url}/api/accounts/me")

    def logged() -> str | None:
        wanted = answer.headers["x-request-id"]
        lines = [line for replica in deployed.replicas for line in replica.log.read_text().splitlines()]
        return next((str(json.loads(line)["client"]) for line in lines if wanted in line), None)

    assert answer.status_code == 401
    logged_client = until_sync(logged, what="the request's line")
    assert str(logged_client).removeprefix("::ffff:") == CLIENT  # Node listens on IPv6 for both
    assert "strict-transport-security" not in answer.headers


@each_proxy
def test_a_page_of_its_own_origin_may_change_something(
    history: dict[str, Seen], proxies: dict[str, Proxy], name: str
) -> None:
    """The proxy passes on `Host` with its port, which `Origin` is compared with."""
    require(name)
    url = proxies[name].url

    answer = httpx.post(
        f"{url}/api/session", json={"email": "a@example.org", "password": "x"}, headers={"origin": url}
    )

    assert answer.status_code == 401, answer.text  # for its password, and not 403 for its origin
