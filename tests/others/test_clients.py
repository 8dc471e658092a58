"""docs/clients.md: its snippets run in real versions of clients that others make, at a replica and behind nginx.

One history for all of them at the same time, in a fixture: the tests look at what each client printed and at what the
replicas logged of it.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.deployment import Deployment, deployment
from harness.replicas import PUBLISH_KEY, bearer, token
from harness.waiting import START_S

from tests.others.clients import NODE_MODULES, Client, empty_page, running
from tests.others.pages import blocks, table

pytestmark = pytest.mark.timeout(600)  # the history is the first test's

PAGE = "clients.md"
BLOCKS = {name: snippet for name, [snippet] in blocks(PAGE).items()}
NAMES = [(name, way) for name in BLOCKS for way in ("replica", "nginx")]
each_client = pytest.mark.parametrize(("name", "way"), NAMES)

ONE_BY_ONE = ("first", "x" * 60_000, "third")  # a large one is several pieces on the wire
IN_TIME_S = 12.0  # for one event on a busy machine; before the heartbeat, which would push a buffer on
EVERY_S = 0.1
TICK_S = 0.05
QUIETS = 6
QUIET_S = 2.5  # after which a client that comes back would have: `retry:` is 0.75 s at most, a polyfill waits 1 s
SETTINGS: dict[str, Any] = {
    "heartbeat_s": 20,
    "stream_lifetime_s": 14,
    "retry_ms": 500,
    "drain_s": 1,
    "history_events": 10_000,
}

# What the page says a client needs, and the same snippet without it.
WITHOUT = {
    "httpx-sse": ("timeout=httpx.Timeout(10, read=40)", ""),
    "@microsoft/fetch-event-source": ('throw new Error("a clean end: come back");', ""),
    "launchdarkly-eventsource": ("error_strategy=ErrorStrategy.from_lambda(lambda error: (final(error), None)),", ""),
}


@dataclass
class History:
    """What happened.

    Shape: `accepted` are the positions of all events, in order; `late` are clients, and events that they got after
    their time; `ends` are the reasons by which a user's streams ended before replicas were killed; `opened` says how
    many there were, then and at last.
    """

    clients: dict[tuple[str, str], Client]
    without: dict[str, Client]
    accepted: list[str] = field(default_factory=list)
    late: list[tuple[Client, str]] = field(default_factory=list)
    ends: dict[str, list[str]] = field(default_factory=dict)
    opened: list[dict[str, int]] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    @property
    def pages(self) -> list[Client]:
        return [client for client in self.clients.values() if client.in_a_browser]


@pytest.fixture(scope="module")
def history() -> Iterator[History]:
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing: apt-get install chromium"
    assert NODE_MODULES.is_dir(), "npm packages are missing: make test installs them; or npm ci in tests/others"
    folder = Path(tempfile.mkdtemp(prefix="allim-clients-"))
    try:
        with empty_page() as origin, deployment(2, proxied=False, cors_origins=origin, **SETTINGS) as deployed:
            yield asyncio.run(_history(deployed, folder, origin, chromium))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _history(deployed: Deployment, folder: Path, origin: str, chromium: str) -> History:
    urls = {"replica": deployed.urls[0], "nginx": deployed.url}

    def client(name: str, url: str, number: int, without: tuple[str, str] = ("", "")) -> Client:
        block, subject = BLOCKS[name], f"client-{number}"
        assert without[0] in block.text
        block = block._replace(text=block.text.replace(*without) if without[0] else block.text)
        return Client(name, block, url, subject, token(subject))

    history = History(
        {(name, way): client(name, urls[way], number) for number, (name, way) in enumerate(NAMES)},
        {
            name: client(name, urls["nginx"], len(NAMES) + number, without)
            for number, (name, without) in enumerate(WITHOUT.items())
        },
    )
    async with running(
        [*history.clients.values(), *history.without.values()], folder, origin=origin, chromium=chromium
    ):
        await _live(deployed, history)
    return history


async def _live(deployed: Deployment, history: History) -> None:
    logs = Logs(deployed)
    clients = list(history.clients.values())
    everybody = [*clients, *history.without.values()]

    def opened_again(before: dict[str, int]) -> bool:
        now = logs.opened
        return all(now.get(client.subject, 0) > before.get(client.subject, 0) for client in clients)

    def ended(reason: str, whose: Sequence[Client]) -> bool:
        now = logs.ends
        return all(reason in now.get(client.subject, []) for client in whose)

    def have(position: str) -> bool:
        return all(client.lines and client.lines[-1].startswith(f"{position} ") for client in clients)

    async with httpx.AsyncClient(headers=bearer(PUBLISH_KEY), timeout=15, trust_env=False) as http:
        await _settled(lambda: logs.opened.keys() >= {client.subject for client in everybody}, START_S)
        for data in ONE_BY_ONE:
            position = await _publish(http, deployed.urls, len(history.accepted), data)
            history.accepted.append(position)
            await _settled(partial(have, position), IN_TIME_S)
            history.late += [(client, position) for client in clients if position not in client.ids]

        await _settled(lambda: ended("client_left", [history.without["httpx-sse"]]))  # for it was silent for so long

        going_on = asyncio.Event()
        publishing = asyncio.create_task(_publish_until(going_on, http, deployed.urls, history.accepted))
        await _settled(lambda: ended("rotate", everybody))
        await _settled(lambda: opened_again(dict.fromkeys([client.subject for client in clients], 1)))
        history.ends = logs.ends

        for replica in deployed.replicas:
            replica.kill()
        history.opened.append(logs.opened)
        behind = sum(client.url == deployed.url for client in clients)
        await _settled(lambda: logs.come_backs >= behind)
        for replica in deployed.replicas:
            replica.start()
        await asyncio.gather(*(asyncio.to_thread(replica.until_ready) for replica in deployed.replicas))
        await _settled(lambda: opened_again(history.opened[0]), START_S)
        going_on.set()
        await publishing
        await _settled(lambda: have(history.accepted[-1]))
        history.opened.append(logs.opened)

    await _sign_out(deployed.url, clients)
    await _settled(lambda: all(client.returned is not None for client in clients if not client.in_a_browser))
    await _quiet(history)


async def _quiet(history: History) -> None:
    """Wait until no page has asked for a stream for a while; note what they asked in the last while."""
    for _ in range(QUIETS):
        before = [client.requests for client in history.pages]
        await asyncio.sleep(QUIET_S)
        history.requests = [now.requests - then for now, then in zip(history.pages, before, strict=True)]
        if not any(history.requests):
            return


async def _settled(condition: Callable[[], bool], within_s: float = 40.0) -> None:
    """Wait for all clients, but for none longer than that: the tests say which of them did not do it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(TICK_S)


async def _publish(http: httpx.AsyncClient, urls: Sequence[str], number: int, data: str) -> str:
    """Publish it, at one replica or another, until it is accepted."""
    event = {"topic": "system", "type": "orders.shipped", "data": data}
    while True:
        with suppress(httpx.TransportError):
            answer = await http.post(
                f"{urls[number % len(urls)]}/api/publish", json=event, headers={"idempotency-key": f"event-{number}"}
            )
            if answer.status_code == 202:
                return str(answer.json()["id"])
        await asyncio.sleep(EVERY_S)


async def _publish_until(
    stop: asyncio.Event, http: httpx.AsyncClient, urls: Sequence[str], accepted: list[str]
) -> None:
    while not stop.is_set():
        accepted.append(await _publish(http, urls, len(accepted), f"event {len(accepted)}"))
        await asyncio.sleep(EVERY_S)


async def _sign_out(url: str, clients: Sequence[Client]) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=15, trust_env=False) as http:
        answers = await asyncio.gather(
            *(http.delete("/api/session", headers=bearer(client.token)) for client in clients)
        )
    assert {answer.status_code for answer in answers} == {204}


class Logs:
    """What replicas and nginx logged of streams, read on from where the last look ended."""

    def __init__(self, deployed: Deployment) -> None:
        assert deployed.nginx is not None
        self.files = {replica.log: 0 for replica in deployed.replicas} | {deployed.nginx.log: 0}
        self._opened: dict[str, int] = {}
        self._ends: dict[str, list[str]] = {}
        self._come_backs = 0

    @property
    def opened(self) -> dict[str, int]:
        """How many streams each user has opened."""
        self._read()
        return dict(self._opened)

    @property
    def ends(self) -> dict[str, list[str]]:
        """The reasons by which each user's streams ended."""
        self._read()
        return {user: list(reasons) for user, reasons in self._ends.items()}

    @property
    def come_backs(self) -> int:
        """How often nginx told a stream when to come back."""
        self._read()
        return self._come_backs

    def _read(self) -> None:
        for path, offset in self.files.items():
            with path.open("rb") as file:
                file.seek(offset)
                lines = file.read().rpartition(b"\n")[0]
            self.files[path] = offset + len(lines) + bool(lines)
            for line in lines.splitlines():
                self._note(line)

    def _note(self, line: bytes) -> None:
        if b'"event": "stream opened"' in line:
            user = json.loads(line)["user"]
            self._opened[user] = self._opened.get(user, 0) + 1
        elif b'"event": "stream closed"' in line:
            closed = json.loads(line)
            self._ends.setdefault(closed["user"], []).append(closed["reason"])
        elif b'"path":"/events"' in line and b'"status":"200"' in line:
            self._come_backs += "502" in json.loads(line)["upstream_status"]


# -- The page ---------------------------------------------------------------------------------------------


def test_the_page_names_the_versions_that_run() -> None:
    for client, versions, *_ in table(PAGE):
        name = client.split("]")[0].lstrip("[")
        if "(npm)" in client:
            manifest = json.loads((NODE_MODULES / name / "package.json").read_text())
            assert versions == manifest["version"], name
        if "(PyPI)" in client:
            names = [name, "requests"] if "with requests" in client else [name]
            assert versions == ", ".join(map(version, names)), name


def test_every_client_of_the_table_has_a_snippet() -> None:
    anchors = [row[0].partition("(#")[2].partition(")")[0] for row in table(PAGE)]
    headings = ["".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c in "-_") for name in BLOCKS]

    assert anchors == headings


# -- What each client did ---------------------------------------------------------------------------------


@each_client
def test_events_come_one_by_one_as_they_are_published(history: History, name: str, way: str) -> None:
    client = history.clients[name, way]

    assert [position for late, position in history.late if late is client] == [], client.said()
    assert client.datas[: len(ONE_BY_ONE)] == [json.dumps(data) for data in ONE_BY_ONE], client.said()


@each_client
def test_only_its_rotation_ends_a_stream_and_the_client_comes_back(history: History, name: str, way: str) -> None:
    client = history.clients[name, way]

    assert set(history.ends.get(client.subject, [])) == {"rotate"}, client.said()
    assert history.opened[0][client.subject] >= 2, client.said()


@each_client
def test_it_comes_back_when_every_replica_was_killed(history: History, name: str, way: str) -> None:
    client = history.clients[name, way]

    assert history.opened[1][client.subject] > history.opened[0][client.subject], client.said()


@each_client
def test_it_gets_every_event_once_and_in_order(history: History, name: str, way: str) -> None:
    client = history.clients[name, way]

    assert len(history.accepted) > 20
    assert client.ids == history.accepted, client.said()


@each_client
def test_it_stops_after_a_sign_out(history: History, name: str, way: str) -> None:
    client = history.clients[name, way]

    if client.in_a_browser:
        assert history.requests[history.pages.index(client)] == 0, client.said()
    else:
        assert client.returned is not None, client.said()


# -- What the page says would happen otherwise ------------------------------------------------------------


def test_without_a_read_time_out_of_its_own_httpx_cuts_the_stream_in_the_first_silence(history: History) -> None:
    assert "client_left" in history.ends[history.without["httpx-sse"].subject]


def test_without_an_error_in_onclose_a_rotation_is_the_end(history: History) -> None:
    client = history.without["@microsoft/fetch-event-source"]

    assert [opened[client.subject] for opened in history.opened] == [1, 1]
    assert client.ids != history.accepted


def test_without_a_strategy_for_errors_a_rotation_is_the_end(history: History) -> None:
    client = history.without["launchdarkly-eventsource"]

    assert [opened[client.subject] for opened in history.opened] == [1, 1]
    assert client.returned == 0, client.said()
