"""The generator notices what is lost, doubled, given to the wrong stream or changed, however the bytes are cut."""

import json
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from bench.deliveries import Deliveries, Faults
from bench.generator import Failure, Generator, Load
from bench.remote import generator
from bench.wire import Malformed, arrivals, dechunk, first_id, head, with_header

EVENT = b'id: 7-0\nevent: bench\ndata: {"n":12,"t":345,"p":"xx"}\n\n'


@dataclass
class Server:
    """A contender of one thread that does wrong what it is told to.

    Shape: `copies[n]` says how often event n is written, if not once; `strays` come to user 0 whoever they are for;
    with event n an old one comes again, `again[n]`.
    """

    chunk_bytes: int = 0
    send_bytes: int = 0
    copies: dict[int, int] = field(default_factory=dict)
    strays: frozenset[int] = frozenset()
    again: dict[int, int] = field(default_factory=dict)
    changed: bool = False
    backwards: bool = False
    closes: bool = False
    status: int = 202
    answer_ok: int | tuple[int, ...] = 202
    host_port: int = 0
    writing: threading.Lock = field(default_factory=threading.Lock)

    def stream_request(self, user: int) -> bytes:
        return b"GET /%d HTTP/1.1\r\n\r\n" % user

    def publish_request(self, user: int | None, values: Sequence[object]) -> bytes:
        body = json.dumps([user, *values], separators=(",", ":")).encode()
        return b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    def serve(self, listener: socket.socket) -> None:
        streams: dict[int, socket.socket] = {}
        threads = []
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                break
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threads.append(threading.Thread(target=self._talk, args=(sock, streams)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _talk(self, sock: socket.socket, streams: dict[int, socket.socket]) -> None:
        raw = b""
        try:
            while piece := sock.recv(65536):
                raw += piece
                while (rest := self._answer(sock, raw, streams)) is not None:
                    raw = rest
        except OSError:
            pass  # the generator closes by reset
        sock.close()

    def _answer(self, sock: socket.socket, raw: bytes, streams: dict[int, socket.socket]) -> bytes | None:
        top, end, rest = raw.partition(b"\r\n\r\n")
        if not end:
            return None
        if stream := re.match(rb"GET /(\d+)", top):
            kind = b"Transfer-Encoding: chunked" if self.chunk_bytes else b"Connection: close"
            with self.writing:  # nobody's event between the bytes
                streams[int(stream[1])] = sock
                sock.sendall(b"HTTP/1.1 200 OK\r\n%b\r\n\r\n" % kind)
                self._write(sock, b": hello\n\n")
            return rest
        length = re.search(rb"Content-Length: (\d+)", top)
        assert length
        if len(rest) < int(length[1]):
            return None
        user, *values = json.loads(rest[: int(length[1])])
        with self.writing:
            for value in reversed(values) if self.backwards else values:
                self._deliver(user, value, streams)
        sock.sendall(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nno" % self.status)
        if self.closes:
            sock.shutdown(socket.SHUT_RDWR)
        return rest[int(length[1]) :]

    def _deliver(self, user: int | None, value: dict[str, object], streams: dict[int, socket.socket]) -> None:
        text = json.dumps(value, separators=(", " if self.changed else ",", ":")).encode()
        number = value["n"]
        assert isinstance(number, int)
        for index, stream in list(streams.items()):
            if user in (None, index) or (number in self.strays and index == 0):
                if number in self.again:
                    self._write(stream, b'data: {"n":%d,"t":0,"p":""}\n\n' % self.again[number])
                for _ in range(self.copies.get(number, 1)):
                    self._write(stream, b"id: 7-0\nevent: bench\ndata: %b\n\n" % text)

    def _write(self, sock: socket.socket, text: bytes) -> None:
        if self.chunk_bytes:
            pieces = [text[at : at + self.chunk_bytes] for at in range(0, len(text), self.chunk_bytes)]
            text = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        with suppress(OSError):  # a stream that ended
            for at in range(0, len(text), self.send_bytes or len(text)):
                sock.sendall(text[at : at + (self.send_bytes or len(text))])


@contextmanager
def running(server: Server, streams: int = 3) -> Iterator[Generator]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.host_port = listener.getsockname()[1]
        thread = threading.Thread(target=server.serve, args=(listener,))
        thread.start()
        made = Generator(server)
        try:
            made.open(0, streams)
            yield made
        finally:
            made.shut()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("chunk_bytes", [0, 1, 7, 1000])
@pytest.mark.parametrize("send_bytes", [0, 1, 5])
def test_counts_every_delivery_however_the_bytes_are_cut(chunk_bytes: int, send_bytes: int) -> None:
    with running(Server(chunk_bytes=chunk_bytes, send_bytes=send_bytes)) as made:
        broadcast = made.drive(Load(broadcasts=6, event_bytes=60, window=2), streams=3)
        single = made.drive(Load(singles=9, event_bytes=60), streams=3)
        batches = made.drive(Load(singles=12, batch=4, event_bytes=60), streams=3)

    assert broadcast.good
    assert (broadcast.published, broadcast.received) == (6, 18)
    assert single.good
    assert (single.published, single.received) == (9, 9)
    assert batches.good
    assert (batches.published, batches.received) == (3, 12)
    assert 0 < broadcast.ms[0] <= broadcast.ms[-1]


@pytest.mark.parametrize("load", [Load(broadcasts=5), Load(singles=5)])
def test_notices_what_is_lost(load: Load) -> None:
    with running(Server(copies={3: 0})) as made:
        outcome = made.drive(load, streams=3, patience_s=0.5)

    assert not outcome.good
    assert outcome.faults == Faults(lost=3 if load.broadcasts else 1)
    assert outcome.received == (12 if load.broadcasts else 4)


@pytest.mark.parametrize("load", [Load(broadcasts=5), Load(singles=5)])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_notices_what_comes_twice(load: Load, number: int) -> None:
    with running(Server(copies={number: 2})) as made:
        outcome = made.drive(load, streams=3)

    assert not outcome.good
    assert outcome.faults == Faults(doubled=3 if load.broadcasts else 1)


def test_notices_what_is_for_another_stream() -> None:
    with running(Server(strays=frozenset({2}))) as made:
        outcome = made.drive(Load(singles=5), streams=3)

    assert outcome.faults == Faults(foreign=1)


def test_notices_what_an_earlier_run_published() -> None:
    with running(Server(again={3: 1})) as made:
        first = made.drive(Load(broadcasts=2), streams=3)
        second = made.drive(Load(broadcasts=2), streams=3)

    assert first.good
    assert second.faults == Faults(foreign=3)


def test_another_order_is_no_fault() -> None:
    with running(Server(backwards=True)) as made:
        outcome = made.drive(Load(singles=12, batch=4), streams=3)

    assert outcome.good


def test_notices_an_event_that_was_changed_on_its_way() -> None:
    with running(Server(changed=True)) as made, pytest.raises(Failure, match="changed"):
        made.drive(Load(broadcasts=1), streams=3)


def test_notices_a_publish_that_was_refused() -> None:
    with running(Server(status=503)) as made:
        outcome = made.drive(Load(broadcasts=2), streams=3)

    assert not outcome.good
    assert (outcome.refused, outcome.refusal) == (2, "'no'")


def test_notices_a_stream_that_ended() -> None:
    with running(Server()) as made:
        made._streams[next(iter(made._streams))].sock.shutdown(socket.SHUT_RDWR)
        outcome = made.drive(Load(broadcasts=1), streams=3, patience_s=0.5)

    assert outcome.ended == 1
    assert outcome.faults.lost == 1


def test_goes_on_when_a_server_closes_an_idle_connection() -> None:
    with running(Server(closes=True)) as made:
        outcome = made.drive(Load(broadcasts=3, per_s=20, at_once=1), streams=3)

    assert outcome.good


def test_keeps_the_pace() -> None:
    with running(Server()) as made:
        outcome = made.drive(Load(broadcasts=11, per_s=50), streams=3)

    assert outcome.good
    assert outcome.wall_s >= 0.2


def test_works_in_a_process_of_its_own() -> None:
    server = Server(copies={4: 2})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server.host_port = listener.getsockname()[1]
        with generator(server) as remote:
            thread = threading.Thread(target=server.serve, args=(listener,))
            thread.start()
            opened = remote.open(0, 3)
            first = remote.drive(Load(broadcasts=3), 0, 3)
            second = remote.drive(Load(broadcasts=3), 0, 3)
            missing = remote.first_id()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()

    assert opened.streams == 3
    assert first.good
    assert second.faults == Faults(doubled=3)
    assert missing == b"7-0"


def test_deliveries_of_broadcasts_may_come_in_any_order() -> None:
    run = Deliveries(10, streams=2, broadcasts=3)
    for number in (12, 10, 11):
        run.note(0, number, 1)
    for number in (11, 12, 10):
        run.note(1, number, 1)

    assert run.complete
    assert run.everywhere == 3
    assert run.faults == Faults()


@pytest.mark.parametrize("number", [10, 11, 12])
def test_deliveries_that_come_twice_in_any_order_are_doubled(number: int) -> None:
    run = Deliveries(10, streams=1, broadcasts=3)
    for come in (12, 11, number, 10, number):
        run.note(0, come, 1)

    assert run.faults.doubled == 2
    assert run.received == 3


def test_deliveries_of_broadcasts_and_of_single_events() -> None:
    run = Deliveries(0, streams=2, broadcasts=1, owners=[0, 1])
    run.note(0, 0, 1)
    run.note(0, 1, 1)
    run.note(1, 1, 1)  # not its own
    run.note(1, 2, 1)
    run.note(1, 2, 1)  # again
    run.note(1, 3, 1)  # never published
    run.note(5, 0, 1)  # no stream of this run

    assert run.faults == Faults(lost=1, doubled=1, foreign=3)


@pytest.mark.parametrize("cut", range(len(EVENT) + 1))
def test_an_event_is_found_once_wherever_it_is_cut(cut: int) -> None:
    first, rest = arrivals(EVENT[:cut])
    second, rest = arrivals(rest + EVENT[cut:])

    assert (*first, *second) == ((12, 345),)
    assert rest == b""


@pytest.mark.parametrize(
    "line", [b'data: {"n":x,"t":2,"p":""}\n', b'data: {"n":1,"t":2}\n', b'{"n":1,"t":2,"p":""}\n']
)
def test_an_event_in_another_form_is_refused(line: bytes) -> None:
    with pytest.raises(Malformed):
        arrivals(line)


def test_chunks_are_taken_apart() -> None:
    assert dechunk(b"5;a=b\r\nhello\r\n3\r\nyou\r\n4\r\nmo") == (b"helloyou", b"4\r\nmo", False)
    assert dechunk(b"1\r\nx\r\n0\r\n\r\n") == (b"x", b"", True)


@pytest.mark.parametrize("raw", [b"zz\r\nhello\r\n", b"2\r\nhello\r\n", b"\r\n\r\n"])
def test_bad_chunks_are_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        dechunk(raw)


def test_a_response_head_is_read_when_it_is_complete() -> None:
    assert head(b"HTTP/1.1 200 OK\r\nX: y") is None
    assert head(b"HTTP/1.1 202 Accepted\r\nContent-Length: 3\r\n\r\nabc") == (202, False, 3, 44)
    assert head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n") == (200, True, None, 47)
    with pytest.raises(Malformed):
        head(b"hello\r\n\r\n")


def test_the_first_id_and_a_further_header() -> None:
    assert first_id(b"retry: 5\nid: 3-4\nevent: a\n\nid: 5-6\n") == b"3-4"
    assert first_id(b"data: id: 3\n") is None
    assert with_header(b"GET / HTTP/1.1\r\nA: b\r\n\r\n", "C", b"d") == b"GET / HTTP/1.1\r\nA: b\r\nC: d\r\n\r\n"
