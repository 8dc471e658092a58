"""The process around a simulated Redis: its connections, its subscribers, and how it hangs, dies and comes back."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import hiredis

from tests.simulation.clock import Machine, VirtualLoop
from tests.simulation.network import Connection, Transport
from tests.simulation.redis import Redis, RedisError, Status

COMMAND_S = 15e-6  # what Redis needs for a command
CALL_S = 2e-6  # for one of a script
AOF_DEPTH_S = 1.0  # what a crash loses at most: `appendfsync everysec`


class RedisProcess:
    """One Redis and whoever is connected. Its machine has a clock of its own, which may be set.

    Shape: a `durable` one loses nothing when it crashes.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        machine: Machine,
        rng: random.Random,
        delay_s: tuple[float, float],
        *,
        durable: bool,
    ) -> None:
        self.loop = loop
        self.machine = machine
        self.rng = rng
        self.delay_s = delay_s
        self.sessions: dict[Session, None] = {}
        self.subscribers: dict[bytes, dict[Session, None]] = {}
        self.durable = durable
        self.hung = self.down = False
        self.waiting: list[tuple[Session, bytes]] = []
        self.busy_until = 0.0
        self.refusing: set[str] = set()
        self.replicas_confirm = True
        self.data = Redis(self._wall_ms, self._publish, self._new_run_id(), lambda: loop.now)

    def _wall_ms(self) -> int:
        return int(self.machine.wall_s() * 1000)

    def _new_run_id(self) -> str:
        return f"{self.rng.getrandbits(160):040x}"

    # Faults ---------------------------------------------------------------------------------------------------

    def set_clock(self, by_s: float) -> None:
        """Its clock is set on, or back."""
        self.machine.skew_s += by_s
        self.data.expire()

    def hang(self) -> None:
        self.hung = True

    def go_on(self) -> None:
        self.hung = False
        waiting, self.waiting = self.waiting, []
        for session, data in waiting:
            if session in self.sessions:
                session.data_received(data)

    def crash(self) -> None:
        self.down = True
        self.waiting.clear()
        for session in list(self.sessions):
            session.transport.end_now(ConnectionResetError("the process died"))
        self.sessions.clear()
        self.subscribers.clear()

    def start(self, *, emptied: bool = False, lost_after_s: float = float("inf")) -> None:
        """Come back as another process; emptied, or without what was written later than that."""
        self.down = self.hung = False
        if emptied:
            self.data.flush()
        self.data.restart(self._new_run_id(), lost_after_s)

    def kill_clients(self, *, subscribers: bool) -> None:
        for session in list(self.sessions):
            if bool(session.channels) == subscribers:
                session.transport.end_now(None)

    # Connections ----------------------------------------------------------------------------------------------

    async def connect(self, factory: Any, client: str) -> tuple[Transport, Any]:
        """Raises: OSError."""
        low, high = self.delay_s
        await asyncio.sleep(low + (high - low) * self.rng.random())
        if self.down or client in self.refusing:
            raise ConnectionRefusedError("connection refused")
        connection = Connection(self.loop, self.rng, self.machine.context, self.delay_s)
        session = Session(self, client, connection)
        protocol = factory()
        connection.begin(protocol, session)
        return connection.client, protocol

    def connections_of(self, client: str) -> list[Connection]:
        return [session.connection for session in self.sessions if session.client == client]

    def _publish(self, channel: bytes, message: bytes) -> int:
        sessions = self.subscribers.get(channel)
        if not sessions:
            return 0
        wire = b"*3\r\n$7\r\nmessage\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(channel), channel, len(message), message)
        for session in sessions:
            session.push(wire)
        return len(sessions)


class Session(asyncio.Protocol):
    """One connection, as Redis sees it."""

    def __init__(self, process: RedisProcess, client: str, connection: Connection) -> None:
        self.process = process
        self.client = client
        self.connection = connection
        self.reader = hiredis.Reader()
        self.channels: dict[bytes, None] = {}
        self.out: list[bytes] = []
        self.transport: Transport = connection.server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.process.sessions[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.process.sessions.pop(self, None)
        for channel in self.channels:
            self.process.subscribers.get(channel, {}).pop(self, None)
        self.channels.clear()

    def data_received(self, data: bytes) -> None:
        process = self.process
        if process.hung:
            process.waiting.append((self, data))
            return
        if process.down:
            return
        self.reader.feed(data)
        while (command := self.reader.gets()) is not False:
            before = process.data.called
            self.out.append(self._answer(command))
            cost = COMMAND_S + CALL_S * (process.data.called - before)
            process.busy_until = max(process.busy_until, process.loop.now) + cost
        if self.out:
            wire = b"".join(self.out)
            self.out.clear()
            self.connection.back.send(wire, process.busy_until)

    def push(self, wire: bytes) -> None:
        """A message to a subscriber: by itself, so that the network can lose or move it."""
        self.connection.back.send_message(wire, self.process.busy_until)

    def _answer(self, command: Sequence[bytes]) -> bytes:
        try:
            own = getattr(self, f"_do_{command[0].decode().lower()}", None)
            return own(command[1:]) if own is not None else encode(self.process.data.execute(command))
        except RedisError as error:
            return encode(error)

    # Commands of a connection, and of the server, which scripts do not use -----------------------------------

    def _do_client(self, args: Sequence[bytes]) -> bytes:
        return b"+OK\r\n"

    def _do_select(self, args: Sequence[bytes]) -> bytes:
        return b"+OK\r\n"

    def _do_auth(self, args: Sequence[bytes]) -> bytes:
        return b"+OK\r\n"

    def _do_wait(self, args: Sequence[bytes]) -> bytes:
        return encode(int(self.process.replicas_confirm))

    def _do_waitaof(self, args: Sequence[bytes]) -> bytes:
        return encode([1, 0])

    def _do_subscribe(self, args: Sequence[bytes]) -> bytes:
        data = self.process.data
        if data.quiet or "subscribe" in data.denied:
            raise RedisError("NOPERM this user has no permissions to access one of the channels used as arguments")
        replies = []
        for channel in args:
            self.channels[channel] = None
            self.process.subscribers.setdefault(channel, {})[self] = None
            replies.append(
                b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(channel), channel, len(self.channels))
            )
        return b"".join(replies)

    def _do_unsubscribe(self, args: Sequence[bytes]) -> bytes:
        replies = []
        for channel in args:
            self.channels.pop(channel, None)
            self.process.subscribers.get(channel, {}).pop(self, None)
            replies.append(
                b"*3\r\n$11\r\nunsubscribe\r\n$%d\r\n%b\r\n:%d\r\n" % (len(channel), channel, len(self.channels))
            )
        return b"".join(replies)

    def _do_acl(self, args: Sequence[bytes]) -> bytes:
        data = self.process.data
        match args[0].upper():
            case b"WHOAMI":
                return encode(b"allim")
            case b"DRYRUN":
                if args[1] == b"default":  # who replays the file, and loses no rights
                    return b"+OK\r\n"
                name = args[2].decode().lower()
                if name in data.denied or (data.quiet and name in ("publish", "subscribe")):
                    what = "channels used as arguments" if data.quiet else f"'{name}' command"
                    return encode(f"This user has no permissions to run the {what}".encode())
                return b"+OK\r\n"
        raise NotImplementedError(f"ACL {args[0]!r}")

    def _do_config(self, args: Sequence[bytes]) -> bytes:
        known = {
            b"maxmemory-policy": b"noeviction",
            b"maxmemory": b"0",
            b"appendonly": b"yes",
            b"appendfsync": b"always" if self.process.durable else b"everysec",
            b"no-appendfsync-on-rewrite": b"no",
        }
        wanted = [pattern.strip(b"*") for pattern in args[1:]]
        return encode(
            [text for name, value in known.items() if any(w in name for w in wanted) for text in (name, value)]
        )


def encode(reply: Any) -> bytes:
    """A reply in RESP2."""
    if type(reply) is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return b"$-1\r\n"
    if type(reply) is int:
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join([encode(item) for item in reply]))
    if isinstance(reply, Status):
        return b"+%b\r\n" % bytes(reply)
    if isinstance(reply, RedisError):
        return b"-%b\r\n" % str(reply).replace("\r", " ").replace("\n", " ").encode()
    raise TypeError(f"no reply of Redis: {reply!r}")
