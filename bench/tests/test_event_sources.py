"""The clients of a storm notice what is lost, doubled, foreign or out of order, however the bytes are cut."""

from collections.abc import Iterator, Sequence

import pytest

from bench.event_sources import EventSources, Pace

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
OPEN = b'retry: 1500\nid: 5-0\nevent: stream.open\ndata: {"replica":"r1","replayed":%d,"resets":%b}\n\n'


class Front:
    host_port = 9  # nobody listens, and nothing connects

    def stream_request(self, user: int) -> bytes:
        return b"GET /%d HTTP/1.1\r\n\r\n" % user

    def publish_request(self, user: int | None, values: Sequence[object]) -> bytes:
        return b""


@pytest.fixture
def clients() -> Iterator[EventSources]:
    """Users 0 and 1; event 1 is of user 0, 2 of everyone."""
    made = EventSources(Front(), 2, Pace(0, 0))
    made.owners = {1: 0, 2: None}
    yield made
    made.close()


def event(number: int, position: str) -> bytes:
    return b'id: %b\nevent: bench\ndata: {"n":%d,"t":1,"p":""}\n\n' % (position.encode(), number)


def opened(missed: int = 0, resets: bytes = b"[]") -> bytes:
    return OPEN % (missed, resets)


def see(clients: EventSources, first: bytes, second: bytes) -> tuple[int, int, int, int]:
    """Lost, doubled, foreign and backwards, when this comes to the two users."""
    for source, text in zip(clients.sources, (first, second), strict=True):
        assert clients.read(source, HEAD + text)
    return clients.judge()[:4]


def test_all_that_is_expected(clients: EventSources) -> None:
    first = opened() + event(1, "6-0") + event(2, "6-1")

    assert see(clients, first, opened() + event(2, "6-1")) == (0, 0, 0, 0)


def test_what_is_lost(clients: EventSources) -> None:
    assert see(clients, opened() + event(1, "6-0"), opened()) == (2, 0, 0, 0)


def test_what_is_doubled_and_out_of_order(clients: EventSources) -> None:
    first = opened() + event(1, "6-0") + event(2, "6-1") + event(1, "6-0")

    lost, doubled, foreign, backwards = see(clients, first, opened() + event(2, "6-1"))

    assert (lost, doubled, foreign) == (0, 1, 0)
    assert backwards


def test_what_is_foreign(clients: EventSources) -> None:
    first = opened() + event(1, "6-0") + event(2, "6-1")

    assert see(clients, first, opened() + event(1, "6-0") + event(2, "6-1")) == (0, 0, 1, 0)


def test_a_reset_excuses_what_is_lost(clients: EventSources) -> None:
    told = opened(resets=b'[{"topic":"system","reason":"trimmed"}]')

    assert see(clients, opened() + event(1, "6-0") + event(2, "6-1"), told) == (0, 0, 0, 0)
    assert clients.judge().resets == 1


def test_bytes_one_by_one_in_chunks(clients: EventSources) -> None:
    source, text = clients.sources[0], opened(2) + event(1, "6-0") + event(2, "6-1")
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (text[:70], text[70:101], text[101:]))
    raw = CHUNKED + chunks

    assert all(clients.read(source, raw[at : at + 1]) for at in range(len(raw)))

    assert source.numbers == [1, 2]
    assert source.last_id == b"6-1"
    assert source.back_at


def test_a_stream_is_not_back_before_the_last_it_missed(clients: EventSources) -> None:
    source = clients.sources[0]

    clients.read(source, HEAD + opened(2) + event(1, "6-0"))

    assert not source.back_at


def test_an_answer_that_only_says_when_to_come_back(clients: EventSources) -> None:
    source = clients.sources[0]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n"

    assert not clients.read(source, head + b"retry: 4200\n\n")
    assert source.retry_s == 4.2


def test_an_answer_after_which_a_browser_gives_up(clients: EventSources) -> None:
    clients.read(clients.sources[0], b"HTTP/1.1 429 Too Many Requests\r\n\r\n")

    assert clients.judge().given_up == 1
