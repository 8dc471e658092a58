"""A TCP proxy that breaks connections on demand: cut, reset, silent, refused, late, slow, with messages missing."""

import asyncio
import contextlib
import random
import re
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

CHUNK_BYTES = 65536
DELAYED_CHUNKS = 64  # per direction; then the sender has to wait, as with a full window
TRICKLE_STEP_S = 0.02
LINGER_S = 1.0  # how long a cut connection is read on, so that what is still on its way makes no RST of the FIN
ANSWER_S = 10.0

Step = Callable[[], Awaitable[None]]


class Server(Protocol):
    """A server on this machine."""

    port: int


@dataclass
class _Faults:
    """What the connections do to what passes through them."""

    delay_s: float = 0.0
    bytes_per_s: int = 0  # 0: as fast as it goes
    share_dropped: float = 0.0
    rng: random.Random = field(default_factory=random.Random)
    dropped: int = 0


class _Answers:
    """Follows a server's RESP2 values while their bytes pass, and takes pushed messages out of them.

    Only what may become a pushed message is held until it is whole. What is no RESP2 passes as it comes.
    """

    _MESSAGE = b"*3\r\n$7\r\nmessage\r\n"
    _RESP2 = re.compile(rb"[+\-:]|[$*](-?\d*|-?\d+\r\n?)\Z")

    def __init__(self, faults: _Faults) -> None:
        self._faults = faults
        self._values_left = 0  # of the outermost value that is under way
        self._bytes_left = 0  # of the string in it that is under way
        self._line = bytearray()
        self._held: bytearray | None = None

    def passed(self, chunk: bytes) -> bytes:
        """What of this chunk, and of what is held, the client shall get now."""
        out = bytearray()
        at = 0
        while at < len(chunk):
            if not self._values_left:
                self._values_left = 1
                self._held = bytearray() if self._faults.share_dropped else None
            end = self._next(chunk, at)
            (out if self._held is None else self._held).extend(chunk[at:end])
            at = end
            if self._held is not None and not (self._values_left and self._may_be_message(self._held)):
                out += b"" if self._is_dropped(self._held) else self._held
                self._held = None
        return bytes(out)

    def _may_be_message(self, value: bytearray) -> bool:
        return self._MESSAGE.startswith(value[: len(self._MESSAGE)])

    def _is_dropped(self, value: bytearray) -> bool:
        dropped = value.startswith(self._MESSAGE) and self._faults.rng.random() < self._faults.share_dropped
        self._faults.dropped += dropped
        return dropped

    def _next(self, chunk: bytes, at: int) -> int:
        """Where the next line, or what this chunk has of the string under way, ends."""
        if self._bytes_left:
            end = min(len(chunk), at + self._bytes_left)
            self._bytes_left -= end - at
            self._values_left -= not self._bytes_left
            return end
        end = chunk.find(b"\n", at) + 1 or len(chunk)
        self._line += chunk[at:end]
        if not self._RESP2.match(self._line):
            self._bytes_left = sys.maxsize  # one endless string
        elif self._line.endswith(b"\n"):
            self._read_line(bytes(self._line))
            self._line.clear()
        return end

    def _read_line(self, line: bytes) -> None:
        kind, rest = line[:1], line[1:]
        if kind == b"*":
            self._values_left += max(0, int(rest)) - 1
        elif kind == b"$" and int(rest) >= 0:
            self._bytes_left = int(rest) + 2
        else:
            self._values_left -= 1


class _Connection:
    """One client's way to the target: two sockets, and tasks that carry bytes between them."""

    def __init__(self, client: socket.socket, faults: _Faults) -> None:
        self._client = client
        self._server = socket.socket()
        self._server.setblocking(False)
        for end in (self._client, self._server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._faults = faults
        self._tasks: list[asyncio.Task[None]] = []

    async def carry(self, target: tuple[str, int]) -> None:
        """Carry bytes until both sides have ended.

        Raises: OSError when one ends roughly, or the target is not there.
        """
        await asyncio.get_running_loop().sock_connect(self._server, target)
        answers = _Answers(self._faults)
        up: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(DELAYED_CHUNKS)
        down: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(DELAYED_CHUNKS)
        ways = (
            self._take(self._client, up),
            self._give(self._server, up, lambda chunk: chunk, slow=False),
            self._take(self._server, down),
            self._give(self._client, down, answers.passed, slow=True),
        )
        self._tasks = [asyncio.create_task(way) for way in ways]
        await asyncio.gather(*self._tasks)

    async def _take(self, source: socket.socket, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk = await loop.sock_recv(source, CHUNK_BYTES)
            await queue.put((loop.time() + self._faults.delay_s, chunk))
            if not chunk:
                return

    async def _give(
        self,
        sink: socket.socket,
        queue: asyncio.Queue[tuple[float, bytes]],
        passed: Callable[[bytes], bytes],
        *,
        slow: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_at, chunk = await queue.get()
            if (wait_s := due_at - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if not chunk:
                sink.shutdown(socket.SHUT_WR)
                return
            left = passed(chunk)
            while left:
                rate = self._faults.bytes_per_s if slow else 0
                size = max(1, int(rate * TRICKLE_STEP_S)) if rate else len(left)
                await loop.sock_sendall(sink, left[:size])
                left = left[size:]
                if rate:
                    await asyncio.sleep(size / rate)

    async def freeze(self) -> None:
        """Carry nothing any more, and leave both sockets open."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def reset(self) -> None:
        await self.freeze()
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.close()

    async def cut(self) -> None:
        await self.freeze()
        await asyncio.gather(*map(_end, (self._client, self._server)))


async def _end(end: socket.socket) -> None:
    """FIN, then read away what still comes: closing with unread bytes would send RST."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        end.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER_S):
            while await loop.sock_recv(end, CHUNK_BYTES):
                pass
    end.close()


class FaultProxy:
    """Forwards to a port on this machine until it is told to do worse.

    Shape: all methods are synchronous and may be called from any thread; they return when the fault is in force.
    `heal` ends every fault.
    """

    def __init__(self, target_port: int, port: int = 0) -> None:
        self._target = ("127.0.0.1", target_port)
        self._faults = _Faults()
        self._silent = False
        self._carried: dict[_Connection, asyncio.Task[None]] = {}
        self._frozen: list[_Connection] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._listener = _bound(port)
        self._accepting: asyncio.Task[None] | None = None
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        self._do(self._listen)

    @property
    def connections(self) -> int:
        """Open now; one that was black-holed counts until `heal`."""
        return len(self._carried) + len(self._frozen)

    @property
    def dropped(self) -> int:
        """Pushed messages taken out so far."""
        return self._faults.dropped

    def cut(self) -> None:
        """Close every connection, with FIN both ways. New ones are accepted."""
        self._do(self._cut)

    def reset(self) -> None:
        """Close every connection with RST. New ones are accepted."""
        self._do(self._reset)

    def black_hole(self, *, present_only: bool = False) -> None:
        """From now on nothing passes either way and nothing is closed; new connections are accepted and silent.

        With `present_only` new connections work, as with a path that has forgotten those it knew.
        """
        self._silent = not present_only
        self._do(self._freeze)

    def refuse(self) -> None:
        """Reset every connection and refuse new ones."""
        self._do(self._refuse)

    def lead_to(self, server: Server) -> None:
        """Connect new connections to another server, as a name or a virtual IP does. Those that are open stay."""
        self._target = ("127.0.0.1", server.port)

    def delay(self, seconds: float) -> None:
        """Let each chunk through that much later, in order."""
        self._faults.delay_s = seconds

    def trickle(self, bytes_per_s: int) -> None:
        """Let the client have its answers only that fast."""
        self._faults.bytes_per_s = bytes_per_s

    def drop_messages(self, share: float, seed: int = 0) -> None:
        """Drop that share of the pushed pub/sub messages (RESP2 `message`), each as a whole."""
        self._faults.rng = random.Random(seed)
        self._faults.share_dropped = share

    def heal(self) -> None:
        """Forward normally again. Connections that were black-holed are reset, so that nobody waits for them."""
        self._do(self._heal)

    def close(self) -> None:
        """End everything."""
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()

    # In the proxy's own thread --------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        async def run() -> None:
            await step()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(ANSWER_S)

    async def _listen(self) -> None:
        self._listener.listen(1024)
        self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            connection = _Connection(client, self._faults)
            if self._silent:
                self._frozen.append(connection)
            else:
                self._carried[connection] = asyncio.create_task(self._carry(connection))

    async def _carry(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):  # one side was reset: so is the other
            await connection.carry(self._target)
        await connection.reset()
        self._carried.pop(connection, None)

    async def _release(self) -> list[_Connection]:
        """Every connection, with nobody at work on it any more."""
        released, self._carried = self._carried, {}
        for task in released.values():
            task.cancel()
        await asyncio.gather(*released.values(), return_exceptions=True)
        return list(released)

    async def _cut(self) -> None:
        for connection in await self._release():
            task = asyncio.create_task(connection.cut())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
        await asyncio.sleep(0)

    async def _reset(self) -> None:
        await asyncio.gather(*(connection.reset() for connection in await self._release()))

    async def _freeze(self) -> None:
        connections = await self._release()
        await asyncio.gather(*(connection.freeze() for connection in connections))
        self._frozen += connections

    async def _refuse(self) -> None:
        await self._stop_accepting()
        await self._reset()
        self._listener = _bound(self.port)  # keeps the port; without `listen` it refuses

    async def _heal(self) -> None:
        self._silent = False
        self._faults.delay_s, self._faults.bytes_per_s, self._faults.share_dropped = 0.0, 0, 0.0
        frozen, self._frozen = self._frozen, []
        await asyncio.gather(*(connection.reset() for connection in frozen))
        if self._accepting is None:
            await self._listen()

    async def _stop_accepting(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.gather(self._accepting, return_exceptions=True)
            self._accepting = None
        self._listener.close()

    async def _close(self) -> None:
        await self._stop_accepting()
        self._frozen += await self._release()
        await asyncio.gather(*(connection.reset() for connection in self._frozen), *self._ending)
        self._frozen = []


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.setblocking(False)
    return listener


@contextmanager
def fault_proxy(target_port: int, *, port: int | None = None) -> Iterator[FaultProxy]:
    """A proxy to a port on this machine, in a thread with an event loop of its own."""
    proxy = FaultProxy(target_port, port or 0)
    try:
        yield proxy
    finally:
        proxy.close()
