"""The load: opens streams, publishes, judges every delivery. One thread over epoll and raw sockets, made for speed.

It must not be the bottleneck, so it has no event loop but its own and no HTTP library, reads into one buffer, and
parses bytes that it has just parsed only once: a broadcast is the same bytes on every stream.
"""

import json
import select
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from bench.deliveries import Deliveries, Faults
from bench.wire import Arrivals, Malformed, arrivals, dechunk, first_id, head, with_header

HOST = "127.0.0.1"
STREAMS_PER_ADDRESS = 20_000  # of ours: below the number of source ports that Linux gives out
BUFFER_BYTES = 256 * 1024
KNOWN_PIECES = 512  # the same bytes are parsed once, as long as so many others have not come since
PIECE_BYTES = 4096
AFTERWARDS_S = 0.3  # what should not come is waited for so long
MOST_AT_ONCE = 1023
READ_ONCE = select.EPOLLIN | select.EPOLLET  # the kernel looks once at each socket, not twice: 0.3 µs of 5
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # no port is left in TIME_WAIT
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; Python does not name it


class System(Protocol):
    """What the generator must know of a contender; `bench.contender.Running` is one."""

    @property
    def host_port(self) -> int: ...

    @property
    def answer_ok(self) -> int | tuple[int, ...]: ...

    def stream_request(self, user: int, /) -> bytes: ...

    def publish_request(self, user: int | None, values: Sequence[object], /) -> bytes: ...


class Load(NamedTuple):
    """What is published in one run: broadcasts first, then events to one user each, in turn.

    Shape: `batch` events in one request, which are all to the same user. `at_once` keep-alive connections, each with
    one request under way. `window`: so many broadcasts at most that have not come everywhere; 0 is no limit. `per_s`:
    requests per second, 0 as fast as answers come. `received=False`: nothing is waited for, the streams come later.
    """

    broadcasts: int = 0
    singles: int = 0
    batch: int = 1
    event_bytes: int = 200
    at_once: int = 4
    window: int = 0
    per_s: float = 0.0
    received: bool = True


class Opened(NamedTuple):
    streams: int
    wall_s: float
    cpu_s: float


class Outcome(NamedTuple):
    """One run as the generator saw it.

    Shape: `refused` publishes got another answer than the good one, the first of them was `refusal`; `ended` streams
    did not stay open. `ms` are p50, p90, p99, p99.9 and the longest, from publish to receipt; `late_ms` is how late
    the generator itself was at most to send what was due. `wall_s` is from the first request to the last delivery.
    """

    published: int
    received: int
    faults: Faults
    refused: int
    refusal: str
    ended: int
    ms: tuple[float, float, float, float, float]
    late_ms: float
    wall_s: float
    cpu_s: float

    @property
    def good(self) -> bool:
        return not (any(self.faults) or self.refused or self.ended)

    def __str__(self) -> str:
        times = " ".join(f"{value:.2f}" for value in self.ms)
        text = (
            f"{self.received} received in {self.wall_s:.2f} s ({self.received / self.wall_s:.0f}/s), ms {times}, "
            f"generator {self.cpu_s:.2f} CPU-s"
        )
        if self.good:
            return text
        refused = f"{self.refused} refused ({self.refusal})" if self.refused else "none refused"
        return f"{text}, WRONG: {self.faults}, {refused}, {self.ended} streams ended"


class Failure(Exception):
    """The contender did something after which there is nothing to measure."""


class Stream:
    """One open stream."""

    __slots__ = ("chunked", "index", "opened", "sock", "tail", "text")

    def __init__(self, sock: socket.socket, index: int) -> None:
        self.sock = sock
        self.index = index
        self.opened = False
        self.chunked = False
        self.tail = b""  # the head, a chunk or, without chunks, a line that has not ended
        self.text = b""  # a line within chunks that has not ended


class Connection:
    """One keep-alive connection that publishes."""

    __slots__ = ("received", "sock", "stuck", "unsent")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.stuck = False  # the kernel takes no more for now
        self.received = b""
        self.unsent = b""


class Generator:
    """Holds streams open and publishes to them."""

    def __init__(self, system: System, *, first_number: int = 1, ignored_below: int = 0) -> None:
        """Numbers below `ignored_below` are somebody else's events."""
        self._system = system
        self._good = system.answer_ok if isinstance(system.answer_ok, tuple) else (system.answer_ok,)
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._connections: dict[int, Connection] = {}
        self._idle: list[Connection] = []
        self._requests: dict[int, bytes] = {}
        self._buffer = bytearray(BUFFER_BYTES)
        self._known: dict[bytes, Arrivals] = {}
        self._next_number = first_number
        self._ignored_below = ignored_below
        self._run = Deliveries(first_number, 0, 0)
        self._opening = 0
        self._refused = 0
        self._refusal = ""
        self._ended = 0
        self._first_id: bytes | None = None

    # Streams ----------------------------------------------------------------------------------------------------

    def prepare(self, first_user: int, streams: int) -> None:
        """Make the requests, tokens and all, that open streams of these users."""
        for user in range(first_user, first_user + streams):
            self._requests[user] = self._system.stream_request(user)

    def open(self, first_user: int, streams: int, at_once: int = 64, last_event_id: bytes | None = None) -> Opened:
        """Open that many streams and wait until each has its head, and what comes with it.

        Shape: a stream's index is its user.
        Raises: Failure when one is refused, or nothing happens for 30 s.
        """
        self._first_id = None
        wanted = iter(range(first_user, first_user + streams))
        began, cpu = time.monotonic(), time.process_time()
        moved, left, ended = began, streams, self._ended
        while left or self._opening:
            for user in islice(wanted, at_once - self._opening):
                self._connect(user, last_event_id)
                left -= 1
            before = self._opening
            self._turn(1.0)
            now = time.monotonic()
            if self._opening != before:
                moved = now
            if now - moved > 30 or self._ended > ended:
                raise Failure(f"{left + self._opening} of {streams} streams did not open")
        return Opened(streams, time.monotonic() - began, time.process_time() - cpu)

    def close(self, users: Sequence[int] | None = None) -> None:
        """Close these users' streams, or all."""
        for stream in [s for s in self._streams.values() if users is None or s.index in users]:
            self._drop(stream)

    def shut(self) -> None:
        """Close everything."""
        self.close()
        self._hang_up_all()
        self._epoll.close()

    def first_id(self, within_s: float = 5.0) -> bytes | None:
        """The first id that a stream was given after `open` was called last; None when none came."""
        until = time.monotonic() + within_s
        while self._first_id is None and time.monotonic() < until:
            self._turn(0.1)
        return self._first_id

    def idle(self, seconds: float) -> None:
        """Read what comes, for so long."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self._turn(left_s)

    def _connect(self, user: int, last_event_id: bytes | None) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((f"127.0.0.{1 + user // STREAMS_PER_ADDRESS}", 0))
        request = self._requests.get(user) or self._system.stream_request(user)
        if last_event_id is not None:
            request = with_header(request, "Last-Event-ID", last_event_id)
        sock.connect_ex((HOST, self._system.host_port))  # how it went is told by the first send
        stream = Stream(sock, user)
        stream.tail = request  # until it is sent
        self._streams[sock.fileno()] = stream
        self._opening += 1
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _drop(self, stream: Stream) -> None:
        del self._streams[stream.sock.fileno()]
        self._epoll.unregister(stream.sock.fileno())
        if not stream.opened:
            self._opening -= 1
        stream.sock.close()

    # Reading ----------------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        """Wait for something to happen, and handle all that has."""
        streams, buffer, known, run = self._streams, self._buffer, self._known, self._run
        note, clock = run.note, time.monotonic_ns
        for fd, mask in self._epoll.poll(timeout_s, MOST_AT_ONCE):
            stream = streams.get(fd)
            if stream is None:
                if (connection := self._connections.get(fd)) is not None:
                    self._move(connection, mask)
                continue
            try:
                if mask & select.EPOLLOUT:
                    stream.sock.send(stream.tail)
                    stream.tail = b""
                    self._epoll.modify(fd, READ_ONCE)
                    continue
                size = stream.sock.recv_into(buffer)
            except OSError:
                size = 0
            if not size:
                self._ended += 1
                self._drop(stream)
                continue
            now = clock()
            if size == BUFFER_BYTES:
                self._epoll.modify(fd, READ_ONCE)  # there is more, and it would not be told again
            if size > PIECE_BYTES or stream.tail or not stream.opened:
                came = self._parse(stream, bytes(buffer[:size]))
            else:
                piece = bytes(buffer[:size])
                found = known.get(piece) if not stream.text else None
                if found is None:
                    found = self._parse(stream, piece)
                    self._remember(stream, piece, found)
                came = found
            for number, ns in came:
                if number >= self._ignored_below:
                    note(stream.index, number, now - ns)

    def _remember(self, stream: Stream, piece: bytes, came: Arrivals) -> None:
        """What a piece of whole lines holds is the same on every stream that has nothing left from before."""
        if stream.tail or stream.text:
            return
        if len(self._known) >= KNOWN_PIECES:
            self._known.clear()
        self._known[piece] = came

    def _parse(self, stream: Stream, piece: bytes) -> Arrivals:
        """The events that are complete with this piece; the rest waits in the stream.

        Raises: Failure when the stream is refused or is none.
        """
        raw = stream.tail + piece
        try:
            if not stream.opened:
                answer = head(raw)
                if answer is None:
                    stream.tail = raw
                    return ()
                if answer.status != 200:
                    raise Failure(f"a stream was refused: {raw[:500]!r}")
                stream.opened, stream.chunked = True, answer.chunked
                self._opening -= 1
                raw = raw[answer.end :]
            if stream.chunked:
                text, stream.tail, _ = dechunk(raw)
                text = stream.text + text
                came, stream.text = arrivals(text)
            else:
                text = raw
                came, stream.tail = arrivals(text)
            if self._first_id is None:
                self._first_id = first_id(text)
            return came
        except Malformed as error:
            raise Failure(str(error)) from error

    # Publishing -------------------------------------------------------------------------------------------------

    def expect(self, load: Load, first_user: int, streams: int) -> Iterator[tuple[int | None, int, int]]:
        """Begin a run: from now on every delivery is judged by it.

        Shape: the requests to make, each whose and its first number and how many events; streams are those of users
        `first_user`, `first_user + 1`, …
        """
        requests = -(-load.singles // load.batch)
        owners = [
            first_user + (place // load.batch) % streams if streams else 0 for place in range(requests * load.batch)
        ]
        first = self._next_number
        self._run = Deliveries(first, streams, load.broadcasts, owners)
        self._next_number = self._run.end
        for place in range(load.broadcasts):
            yield None, first + place, 1
        for place in range(0, len(owners), load.batch):
            yield owners[place], first + load.broadcasts + place, load.batch

    def drive(self, load: Load, first_user: int = 0, streams: int | None = None, patience_s: float = 10.0) -> Outcome:
        """Publish the load and wait for every delivery, and a little longer for what should not come.

        Raises: Failure when the contender closes a publishing connection.
        """
        streams = len(self._streams) if streams is None else streams
        for _ in range(load.at_once):
            self._add_connection()
        jobs = self.expect(load, first_user, streams)
        job = next(jobs, None)
        run = self._run
        self._refused = self._ended = 0
        self._refusal = ""
        padding = "x" * max(0, load.event_bytes - 45)
        late_ns = published = 0
        cpu, began_ns = time.process_time(), time.monotonic_ns()
        moved_ns, seen = began_ns, -1
        while True:
            now_ns = time.monotonic_ns()
            due_ns = began_ns + int(published * 1e9 / load.per_s) if load.per_s else now_ns
            while job is not None and self._idle and due_ns <= now_ns and self._room(load, published):
                late_ns = max(late_ns, now_ns - due_ns)
                self._publish(job, padding)
                published += 1
                job = next(jobs, None)
                now_ns = time.monotonic_ns()
                due_ns = began_ns + int(published * 1e9 / load.per_s) if load.per_s else now_ns
            if job is None and len(self._idle) == len(self._connections) and (run.complete or not load.received):
                break
            progress = run.received + published - len(self._idle)
            if progress != seen:
                moved_ns, seen = now_ns, progress
            elif now_ns - moved_ns > patience_s * 1e9:
                break  # lost
            self._turn(min(0.5, max(0.0, (due_ns - now_ns) / 1e9)) if load.per_s and job is not None else 0.5)
        wall_s = (time.monotonic_ns() - began_ns) / 1e9
        cpu_s = time.process_time() - cpu
        if load.received:
            self.idle(AFTERWARDS_S)
        self._hang_up_all()
        return self._outcome(published, late_ns, wall_s, cpu_s)

    def drive_expected(self) -> Outcome:
        """Wait for what was published before the streams were opened."""
        began, cpu = time.monotonic(), time.process_time()
        moved, seen = began, -1
        while not self._run.complete and time.monotonic() - moved < 10:
            if self._run.received != seen:
                moved, seen = time.monotonic(), self._run.received
            self._turn(0.5)
        wall_s, cpu_s = time.monotonic() - began, time.process_time() - cpu
        self.idle(AFTERWARDS_S)
        return self._outcome(self._run.end - self._run.first, 0, max(wall_s, 1e-9), cpu_s)

    def _room(self, load: Load, published: int) -> bool:
        return not load.window or published - self._run.everywhere < load.window

    def _outcome(self, published: int, late_ns: int, wall_s: float, cpu_s: float) -> Outcome:
        ns = sorted(self._run.ns) or [0]
        p50, p90, p99, p999, longest = (
            ns[min(len(ns) - 1, int(len(ns) * share))] / 1e6 for share in (0.5, 0.9, 0.99, 0.999, 1.0)
        )
        return Outcome(
            published,
            self._run.received,
            self._run.faults,
            self._refused,
            self._refusal,
            self._ended,
            (p50, p90, p99, p999, longest),
            late_ns / 1e6,
            wall_s,
            cpu_s,
        )

    def _add_connection(self) -> None:
        sock = socket.create_connection((HOST, self._system.host_port), timeout=10)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        connection = Connection(sock)
        self._connections[sock.fileno()] = connection
        self._idle.append(connection)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _hang_up(self, connection: Connection) -> None:
        del self._connections[connection.sock.fileno()]
        self._epoll.unregister(connection.sock.fileno())
        connection.sock.close()

    def _hang_up_all(self) -> None:
        for connection in list(self._connections.values()):
            self._hang_up(connection)
        self._idle.clear()

    def _publish(self, job: tuple[int | None, int, int], padding: str) -> None:
        user, first, count = job
        now_ns = time.monotonic_ns()
        values = [{"n": number, "t": now_ns, "p": padding} for number in range(first, first + count)]
        connection = self._idle.pop()  # the one used last: it is not one that the server is about to close
        connection.unsent = self._system.publish_request(user, values)
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        try:
            sent = connection.sock.send(connection.unsent)
        except BlockingIOError:
            sent = 0
        connection.unsent = connection.unsent[sent:]
        if connection.stuck != bool(connection.unsent):
            connection.stuck = bool(connection.unsent)
            self._epoll.modify(
                connection.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if connection.stuck else 0)
            )

    def _move(self, connection: Connection, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._send(connection)
        if not mask & ~select.EPOLLOUT:
            return
        try:
            piece = connection.sock.recv(BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._hang_up(connection)
            if connection not in self._idle:
                raise Failure(f"a publishing connection was closed before its answer: {connection.received[:300]!r}")
            self._idle.remove(connection)  # a server may close one that it has not heard of for a while
            self._add_connection()
            return
        connection.received += piece
        try:
            answer = head(connection.received)
            if answer is None or not _whole(connection.received, answer.end, answer.length, answer.chunked):
                return
        except Malformed as error:
            raise Failure(str(error)) from error
        if answer.status not in self._good:
            self._refused += 1
            self._refusal = self._refusal or ascii(connection.received[answer.end :][:200].decode("utf-8", "replace"))
        connection.received = b""
        self._idle.append(connection)


def _whole(raw: bytes, begin: int, length: int | None, chunked: bool) -> bool:
    return dechunk(raw[begin:])[2] if chunked else len(raw) - begin >= (length or 0)


def compact(value: object) -> str:
    """JSON as a contender should pass it on."""
    return json.dumps(value, separators=(",", ":"))
