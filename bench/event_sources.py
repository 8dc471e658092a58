"""Thousands of browsers' EventSources on one thread, and a publisher: who comes back after a replica dies, and when.

A lost connection is made again after the last `retry:` that came, with the last event ID. A body that ends with
nothing but `retry:` in it is what nginx answers when it finds no replica; it counts as an attempt.
"""

import heapq
import json
import re
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

from bench.generator import BUFFER_BYTES, HOST, IP_BIND_ADDRESS_NO_PORT, RESET_ON_CLOSE
from bench.wire import dechunk, head, with_header

FIRST_RETRY_S = 3.0  # a browser's own, before any `retry:`
CONNECTS_AT_ONCE = 32  # in one turn, so that reading does not wait for them
PUBLISH_AGAIN_S = 0.1
MOST_AT_ONCE = 256

_FIELD = re.compile(rb"^(id|retry|event|data): ?([^\n]*)$", re.MULTILINE)
_VALUE = re.compile(rb'\{"n":(\d+),"t":(\d+)')

Place = tuple[int, int]


class Failure(Exception):
    """Nothing can be measured any more."""


class System(Protocol):
    """What must be known of the front; `stream_request` is the raw request of a user's stream, `publish_request` of a
    publish to a user, or to everyone for None."""

    @property
    def host_port(self) -> int: ...

    def stream_request(self, user: int, /) -> bytes: ...

    def publish_request(self, user: int | None, values: Sequence[object], /) -> bytes: ...


class Frame(NamedTuple):
    """What a block of lines says. Shape: `number` is 0 unless it is a published event."""

    event: str
    id: bytes
    place: Place | None
    retry_s: float | None
    number: int
    ns: int
    data: bytes


@lru_cache(maxsize=4096)  # a broadcast is the same bytes on every stream
def frames(text: bytes) -> tuple[Frame, ...]:
    """The frames in text that ends with an empty line."""
    return tuple(_frame(block) for block in text.split(b"\n\n")[:-1])


def _frame(block: bytes) -> Frame:
    found = dict(_FIELD.findall(block))
    name, event_id, data = found.get(b"event", b"").decode(), found.get(b"id", b""), found.get(b"data", b"")
    value = _VALUE.match(data) if name == "bench" else None
    number, ns = (int(value[1]), int(value[2])) if value else (0, 0)
    ms, _, seq = event_id.partition(b"-")
    place = (int(ms), int(seq)) if event_id else None
    return Frame(name, event_id, place, int(found[b"retry"]) / 1000 if b"retry" in found else None, number, ns, data)


class Source:
    """One user's EventSource, over all its connections.

    Shape: `place` is the position of what came last, `numbers` are the events in the order they came; so many as
    `missing` were announced by the last `stream.open` and have not come yet.
    Units: `back_at` in seconds of the monotonic clock, when what was missed had come; 0 while the stream is not back.
    """

    __slots__ = (
        "answered", "attempts", "back_at", "chunked", "cut_at", "last_id", "left", "missing", "numbers", "place",
        "replica", "resets", "retry_s", "sock", "tail", "text", "user", "waits",
    )  # fmt: skip

    def __init__(self, user: int) -> None:
        self.user = user
        self.sock: socket.socket | None = None
        self.answered = False  # the head of this connection's answer has come
        self.chunked = False
        self.left: int | None = None  # of a body whose length was told
        self.tail = b""
        self.text = b""
        self.retry_s = FIRST_RETRY_S
        self.last_id = b""
        self.place: Place = (0, 0)
        self.numbers: list[int] = []
        self.replica = ""
        self.missing = 0
        self.resets = 0
        self.cut_at = 0.0
        self.back_at = 0.0
        self.attempts = 0
        self.waits = 0


class Post:
    """One keep-alive connection that publishes. Shape: `number` is that of the event under way, 0 for none."""

    __slots__ = ("number", "received", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.number = 0
        self.received = b""


class Pace(NamedTuple):
    """Events per second, each in a request of its own: to one user after the other, and to everyone."""

    singles_per_s: float
    broadcasts_per_s: float
    at_once: int = 128


class Judgement(NamedTuple):
    """What went wrong. `given_up` sources got an answer after which a browser does not come back."""

    lost: int
    doubled: int
    foreign: int
    backwards: int
    given_up: int
    resets: int


class EventSources:
    """Sources of the users 0, 1, …; `owners[number]` is whose an event is, None for everyone's.

    Shape: `late_ns` has the time from publish to receipt of single events to sources that were never cut, since
    `watch` was called; `longest_turn_s` is how long they waited for this thread at most.
    """

    def __init__(self, system: System, count: int, pace: Pace) -> None:
        self._system = system
        self.sources = [Source(user) for user in range(count)]
        self._requests = [system.stream_request(user) for user in range(count)]
        self._pace = pace
        self._epoll = select.epoll()
        self._by_fd: dict[int, Source] = {}
        self._posts: dict[int, Post] = {}
        self._idle: list[Post] = []
        self._due: list[tuple[float, int]] = []  # who connects again, and when
        self._opening = 0  # connections without `stream.open`
        self._buffer = bytearray(BUFFER_BYTES)
        self.owners: dict[int, int | None] = {}
        self._bodies: dict[int, bytes] = {}  # of events that are not confirmed
        self._unsent: deque[tuple[float, int]] = deque()
        self._published_at: tuple[float, int, int] | None = None  # since when, and how many of both kinds
        self.answers: Counter[str] = Counter()  # to publishes, other than the good one
        self.backwards = 0
        self.given_up: list[str] = []
        self.late_ns: list[int] = []
        self.longest_turn_s = 0.0

    # Driving ----------------------------------------------------------------------------------------------------

    def open(self, at_once: int = 64) -> None:
        """Connect every source and wait for its first frame.

        Raises: Failure when nothing moves for 30 s.
        """
        waiting = deque(self.sources)
        moved_at, before = time.monotonic(), 0
        while waiting or self._opening:
            while waiting and self._opening < at_once:
                self._connect(waiting.popleft())
            self._turn(0.1)
            left = len(waiting) + self._opening
            if left != before:
                before, moved_at = left, time.monotonic()
            if time.monotonic() - moved_at > 30 or self.given_up:
                raise Failure(f"{left} streams did not open {self.given_up[:1]}")

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Publish at the pace and read, for so long or until something is so, which is asked ten times a second."""
        now = time.monotonic()
        end_at, ask_at = now + seconds, now
        if self._published_at is None:
            self._published_at = (now, 0, 0)
        while (now := time.monotonic()) < end_at:
            if now >= ask_at:
                ask_at = now + 0.1
                if until():
                    return True
            self._plan(now)
            self._send_due(now)
            self._turn(0.002)
        return until()

    def settle(self, seconds: float) -> bool:
        """Publish no more; read until every event has come, or for so long."""
        end_at = time.monotonic() + seconds
        while time.monotonic() < end_at:
            self._send_due(time.monotonic())
            self._turn(0.01)
            if not self._bodies and not any(self.judge()[:2]):
                return True
        return False

    def watch(self) -> None:
        """Begin to note lateness afresh."""
        self.late_ns.clear()
        self.longest_turn_s = 0.0

    def close(self) -> None:
        for source in self._by_fd.values():
            assert source.sock is not None
            source.sock.close()
        for post in self._posts.values():
            post.sock.close()
        self._epoll.close()

    @property
    def cut(self) -> list[Source]:
        return [source for source in self.sources if source.cut_at]

    def all_back(self) -> bool:
        return all(source.back_at for source in self.cut)

    def judge(self) -> Judgement:
        """Every source has each event of its own and everyone's, once; what a reset was told of need not come."""
        everyones = {number for number, owner in self.owners.items() if owner is None}
        own: dict[int, set[int]] = {}
        for number, owner in self.owners.items():
            if owner is not None:
                own.setdefault(owner, set()).add(number)
        lost = doubled = foreign = 0
        for source in self.sources:
            came = set(source.numbers)
            expected = everyones | own.get(source.user, set())
            doubled += len(source.numbers) - len(came)
            foreign += len(came - expected)
            lost += 0 if source.resets else len(expected - came)
        resets = sum(source.resets for source in self.sources)
        return Judgement(lost, doubled, foreign, self.backwards, len(self.given_up), resets)

    # Publishing -------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> None:
        assert self._published_at is not None
        since, singles, broadcasts = self._published_at
        while singles < (now - since) * self._pace.singles_per_s:
            self._draft(singles % len(self.sources))
            singles += 1
        while broadcasts < (now - since) * self._pace.broadcasts_per_s:
            self._draft(None)
            broadcasts += 1
        self._published_at = (since, singles, broadcasts)

    def _draft(self, user: int | None) -> None:
        number = len(self.owners) + 1
        self.owners[number] = user
        value = {"n": number, "t": time.monotonic_ns(), "p": ""}
        request = self._system.publish_request(user, [value])
        top, _, body = request.partition(b"\r\n\r\n")
        self._bodies[number] = b"%b\r\nIdempotency-Key: storm-%d\r\n\r\n%b" % (top, number, body)
        self._unsent.append((0, number))

    def _send_due(self, now: float) -> None:
        while self._unsent and self._unsent[0][0] <= now:
            if not self._idle:
                if len(self._posts) >= self._pace.at_once:
                    return
                self._add_post()
            _, number = self._unsent.popleft()
            post = self._idle.pop()
            post.number = number
            try:
                post.sock.sendall(self._bodies[number])  # a small request fits into the kernel's buffer
            except OSError as error:
                self._lose(post, type(error).__name__)

    def _add_post(self) -> None:
        sock = socket.create_connection((HOST, self._system.host_port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        post = Post(sock)
        self._posts[sock.fileno()] = post
        self._idle.append(post)
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _lose(self, post: Post, why: str) -> None:
        """The connection has ended; what was under way is tried again with the same key."""
        del self._posts[post.sock.fileno()]
        self._epoll.unregister(post.sock.fileno())
        post.sock.close()
        if post.number:
            self._answer(post.number, why)
        else:
            self._idle.remove(post)

    def _answer(self, number: int, answer: str) -> None:
        if answer == "202":
            del self._bodies[number]
        elif answer[:1] == "4":
            raise Failure(f"a publish was answered {answer}")
        else:
            self.answers[answer] += 1
            self._unsent.append((time.monotonic() + PUBLISH_AGAIN_S, number))

    def _read_post(self, post: Post) -> None:
        try:
            piece = post.sock.recv(BUFFER_BYTES)
        except OSError:
            piece = b""
        if not piece:
            self._lose(post, "closed")
            return
        post.received += piece
        answer = head(post.received)
        if answer is None:
            return
        body = post.received[answer.end :]
        if not (dechunk(body)[2] if answer.chunked else len(body) >= (answer.length or 0)):
            return
        number, post.number, post.received = post.number, 0, b""
        self._idle.append(post)
        self._answer(number, str(answer.status))

    # Reading ----------------------------------------------------------------------------------------------------

    def _connect(self, source: Source) -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        sock.connect_ex((HOST, self._system.host_port))  # how it went is told by the first send
        request = self._requests[source.user]
        source.tail = with_header(request, "Last-Event-ID", source.last_id) if source.last_id else request
        source.sock, source.answered, source.left, source.text = sock, False, None, b""
        source.attempts += 1
        self._opening += 1
        self._by_fd[sock.fileno()] = source
        self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def _end(self, source: Source) -> None:
        assert source.sock is not None
        del self._by_fd[source.sock.fileno()]
        self._epoll.unregister(source.sock.fileno())
        source.sock.close()
        source.sock = None
        now = time.monotonic()
        if source.replica:
            source.replica, source.cut_at, source.back_at, source.attempts = "", now, 0.0, 0
        else:
            source.waits += 1
            self._opening -= 1
        heapq.heappush(self._due, (now + source.retry_s, source.user))

    def _turn(self, timeout_s: float) -> None:
        found = self._epoll.poll(timeout_s, MOST_AT_ONCE)
        began = time.monotonic()
        for fd, mask in found:
            source = self._by_fd.get(fd)
            if source is not None:
                self._move(source, fd, mask)
            elif (post := self._posts.get(fd)) is not None:
                self._read_post(post)
        for _ in range(CONNECTS_AT_ONCE):
            if not self._due or self._due[0][0] > began:
                break
            self._connect(self.sources[heapq.heappop(self._due)[1]])
        self.longest_turn_s = max(self.longest_turn_s, time.monotonic() - began)

    def _move(self, source: Source, fd: int, mask: int) -> None:
        assert source.sock is not None
        try:
            if mask & select.EPOLLOUT:
                source.sock.send(source.tail)
                source.tail = b""
                self._epoll.modify(fd, select.EPOLLIN)
                return
            size = source.sock.recv_into(self._buffer)
        except OSError:
            size = 0
        if not size or not self.read(source, bytes(self._buffer[:size])):
            self._end(source)

    def read(self, source: Source, piece: bytes) -> bool:
        """Take what came over a source's connection. False when the body has ended."""
        raw = source.tail + piece
        if not source.answered:
            answer = head(raw)
            if answer is None:
                source.tail = raw
                return True
            if answer.status != 200:
                self.given_up.append(repr(raw[:300]))
                source.tail = b""
                return True
            source.answered, source.chunked, source.left = True, answer.chunked, answer.length
            raw = raw[answer.end :]
        ended = False
        if source.chunked:
            text, source.tail, ended = dechunk(raw)
        else:
            text, source.tail = raw, b""
            if source.left is not None:
                source.left -= len(text)
                ended = source.left <= 0
        text = source.text + text
        end = text.rfind(b"\n\n") + 2
        if end > 1:
            source.text = text[end:]
            now = time.monotonic_ns()
            for frame in frames(text[:end]):
                self._take(source, frame, now)
        else:
            source.text = text
        return not ended

    def _take(self, source: Source, frame: Frame, now: int) -> None:
        if frame.retry_s is not None:
            source.retry_s = frame.retry_s
        if frame.number:
            source.numbers.append(frame.number)
            self.backwards += frame.place is None or frame.place <= source.place
            if source.missing:
                source.missing -= 1
                if not source.missing:
                    source.back_at = now / 1e9
            elif not source.cut_at and self.owners[frame.number] is not None:
                self.late_ns.append(now - frame.ns)
        elif frame.event == "stream.open":
            data = json.loads(frame.data)
            self._opening -= 1
            source.replica, source.missing = data["replica"], data["replayed"]
            source.resets += bool(data["resets"])
            if not source.missing:
                source.back_at = now / 1e9
        elif frame.event == "stream.gap":
            source.resets += 1
        if frame.place is not None:
            self.backwards += frame.place < source.place
            source.place, source.last_id = frame.place, frame.id
