"""The subscriber link: one connection per replica, however many streams it holds.

redis-py's PubSub reconnects inside a read and hides the gap, and its health check never fails on a server that hangs
(docs/decisions/0003-own-subscriber-link.md). So this link uses redis-py's connection directly: it reports every
reconnect, and the hub's pulse tells whether it is alive.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from allim.brokers.redis.server import Connected, RedisServer, receive, write

log = structlog.get_logger(__name__)

GREET_TIMEOUT_S = 5.0
RETRY_MIN_S, RETRY_MAX_S = 0.05, 2.0
CHANNELS_PER_COMMAND = 1000
CANCEL_AGAIN_S = 0.05
TURN_S = 0.002  # for which buffered messages may keep the event loop; checked after each call of `hear`
TOGETHER = 64  # messages in one call of `hear`


class Link:
    """Keeps one subscribed connection, replaces it when it breaks, and reports both.

    Shape: `greet(connected)` is awaited on each new connection, before it subscribes; `hear(channel, messages)` gets
    the messages in order, at most `TOGETHER` consecutive ones of one channel; nothing more is read before
    `writable()` returns. `stands` is True while every wanted channel is confirmed.
    """

    def __init__(
        self,
        server: RedisServer,
        greet: Callable[[Connected], Awaitable[None]],
        hear: Callable[[bytes, Sequence[bytes]], None],
        writable: Callable[[], Awaitable[None]],
        down: Callable[[], None],
        up: Callable[[], None],
    ) -> None:
        self._server = server
        self._greet = greet
        self._hear = hear
        self._writable = writable
        self._down = down
        self._up = up
        self._wanted: set[str] = set()
        self._unconfirmed: dict[str, int] = {}  # SUBSCRIBE commands on their way, per channel
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._commands: deque[tuple[str, str]] = deque()
        self._something_to_send = asyncio.Event()
        self._session: asyncio.Task[None] | None = None
        self._listening = False  # a session is sending the queued commands
        self.stands = False
        self._keeper: asyncio.Task[None] | None = None

    def start(self, channels: Collection[str]) -> None:
        """Start the link with channels that stay subscribed."""
        self._wanted.update(channels)
        self._keeper = asyncio.create_task(self._keep(), name="allim redis link")

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    def replace(self) -> None:
        """Close the present connection; a new one is made at once."""
        if self._session is not None:
            self._session.cancel()

    async def subscribe(self, channels: Collection[str]) -> None:
        """Return when Redis has confirmed every channel, also if that takes several connections."""
        waiting = []
        for channel in channels:
            if channel not in self._wanted:
                self._wanted.add(channel)
                self._command("SUBSCRIBE", channel)
            if not self._confirmed(channel):
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.setdefault(channel, []).append(waiter)
                waiting.append(waiter)
        for waiter in waiting:
            await waiter

    def unsubscribe(self, channel: str) -> None:
        if channel in self._wanted:
            self._wanted.remove(channel)
            self._command("UNSUBSCRIBE", channel)
            if waiting := [waiter for waiter in self._waiters.pop(channel, ()) if not waiter.done()]:
                self._waiters[channel] = waiting  # the others gave up

    # Commands are sent in order, those of one turn of the loop together ---------------------------------------

    def _command(self, verb: str, channel: str) -> None:
        if verb == "SUBSCRIBE":
            self._unconfirmed[channel] = self._unconfirmed.get(channel, 0) + 1
        if self._listening:  # otherwise the next session subscribes all wanted channels
            self._commands.append((verb, channel))
            self._something_to_send.set()

    def _confirmed(self, channel: str) -> bool:
        return channel in self._wanted and channel not in self._unconfirmed

    def _confirm(self, channel: str) -> None:
        """Note the answer to a SUBSCRIBE. Only the answer to the last one counts: an UNSUBSCRIBE may be between."""
        left = self._unconfirmed.get(channel, 1) - 1
        if left:
            self._unconfirmed[channel] = left
            return
        self._unconfirmed.pop(channel, None)
        for waiter in self._waiters.pop(channel, ()):
            if not waiter.done():
                waiter.set_result(None)

    # Sessions -------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Run a session; when it ends, for any reason, run another."""
        delay_s = RETRY_MIN_S
        while True:
            self._session = asyncio.create_task(self._hold(), name="allim redis link session")
            try:
                await self._session
            except asyncio.CancelledError:
                if _being_cancelled():
                    raise
                log.warning("redis link given up")  # by replace()
            except (RedisError, OSError) as error:
                log.warning("redis link lost", error=str(error) or type(error).__name__)
            except Exception:
                log.exception("redis link failed")
            if _being_cancelled():  # the session ended with an error, in the place of the cancellation: see `_end`
                raise asyncio.CancelledError
            if self.stands:
                delay_s = RETRY_MIN_S
            self._session, self.stands = None, False
            self._unconfirmed = dict.fromkeys(self._wanted, 1)
            self._down()
            await asyncio.sleep(random.uniform(0, delay_s))
            delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def _hold(self) -> None:
        connected = await self._server.connect()
        connection = connected.connection
        try:
            async with asyncio.timeout(GREET_TIMEOUT_S):
                await self._greet(connected)
            if _being_cancelled():  # and redis-py swallowed it: see `_end`
                raise asyncio.CancelledError
            self._commands.clear()
            self._unconfirmed = dict.fromkeys(self._wanted, 1)
            self._commands.extend(("SUBSCRIBE", channel) for channel in self._wanted)
            self._something_to_send.set()
            self._listening = True
            await _first_to_end(self._send(connection), self._receive(connection, len(self._wanted)))
        finally:
            self._listening = False
            await connection.disconnect(nowait=True)

    async def _send(self, connection: AbstractConnection) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            commands: list[tuple[str, ...]] = []
            while self._commands:
                verb, channels = self._next_run()
                commands.append((verb, *channels))
            await write(connection, commands)

    def _next_run(self) -> tuple[str, list[str]]:
        verb, first = self._commands.popleft()
        channels = [first]
        while self._commands and self._commands[0][0] == verb and len(channels) < CHANNELS_PER_COMMAND:
            channels.append(self._commands.popleft()[1])
        return verb, channels

    async def _receive(self, connection: AbstractConnection, outstanding: int) -> None:
        """Read until the connection breaks. The link is up after `outstanding` confirmations."""
        clock = time.perf_counter  # uvloop's own clock does not advance within a turn
        turn_ends_at = clock() + TURN_S
        while True:
            together: list[bytes] = []
            messages = await receive(connection)
            for message, following in zip(messages, [*messages[1:], None], strict=True):
                if isinstance(message, Exception):
                    raise message
                kind, channel, content = message
                if kind == b"message":
                    together.append(content)
                    same = isinstance(following, list) and following[1] == channel and following[0] == kind
                    if same and len(together) < TOGETHER:
                        continue
                    self._hear(channel, together)
                    together = []
                elif kind == b"subscribe":
                    self._confirm(channel.decode())
                    outstanding -= 1
                    if outstanding == 0:
                        self.stands = True
                        self._up()
                if clock() > turn_ends_at:
                    await asyncio.sleep(0)
                    turn_ends_at = clock() + TURN_S
            await self._writable()


async def _first_to_end(*coroutines: Coroutine[None, None, None]) -> None:
    """Run coroutines concurrently; when one ends, cancel the others and raise its error."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await _end(tasks)


async def _end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended. On CPython 3.11 `asyncio.wait_for`, which redis-py uses, may swallow a
    cancellation (gh-86296). May go when 3.12 is the oldest Python."""
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
