"""Calls of Lua scripts on Redis; the calls of one turn of the event loop are sent in one pipeline.

There is one connection, with one pipeline under way at a time. Calls made meanwhile wait for the next pipeline. So
under load pipelines grow and connections do not multiply, calls keep their order, and `WAIT` after a pipeline covers
all of it.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib import resources
from typing import Any, NamedTuple

import structlog
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError

from allim.brokers.redis.server import ANSWER_TIMEOUT_S, Connected, RedisServer, receive, write
from allim.deadlines import Deadlines, TimeLimit
from allim.errors import Unavailable

log = structlog.get_logger(__name__)

MAX_BATCH = 512  # calls in one pipeline: bounds the number of calls that one failure affects
MAX_WAITING = 20_000  # calls that wait while Redis hangs
VITAL = "#!lua flags=allow-oom"  # for scripts that end sessions: they write little and must not wait for memory

NO_EFFECT = frozenset({"BUSY", "LOADING", "MASTERDOWN", "NOSCRIPT", "READONLY"})
"""Codes of errors with which Redis refuses a script before it runs, for a passing reason."""


class NotDone(Unavailable):
    """The call certainly had no effect, so it may be repeated."""


class Refused(Unavailable):
    """Redis refused the call for a reason that does not pass by itself, so it is not repeated."""


def _unchanged(reply: Any) -> Any:
    return reply


class Script:
    """A Lua script, preceded by the parts that it shares with others, called by its digest.

    Shape: a `vital` script writes even if Redis has used up its memory. If the disk is full, Redis refuses a vital
    script as a whole, and any other at its first write.
    """

    def __init__(self, name: str, *shared: str, vital: bool = False) -> None:
        folder = resources.files("allim.brokers.redis") / "lua"
        parts = [(folder / f"{part}.lua").read_text("utf-8") for part in (*shared, name)]
        self.name = name
        self.files = (*shared, name)
        self.source = "\n".join([VITAL, *parts] if vital else parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """Shape: `pauses` has the pause before each further attempt; `repeatable`: a second run changes nothing more."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Any]
    read: Callable[[Any], Any]
    pauses: Sequence[float]
    repeatable: bool
    done: "asyncio.Future[Any]"


Context = Callable[[str], tuple[str, ...]]
"""Returns the first arguments of every script of a queue, given the run ID of its Redis process: see clock.lua."""

Confirm = Callable[[AbstractConnection], Awaitable[str | None]]
"""Checks, over the connection that wrote, whether the writes have their durability. Returns None, or why not."""


class ScriptCalls:
    """A queue of script calls over one connection. Units: `within_s` seconds for a call with all its attempts."""

    def __init__(
        self,
        server: RedisServer,
        context: Context,
        confirm: Confirm | None = None,
        within_s: float | None = None,
    ) -> None:
        self._server = server
        self._context = context
        self._confirm = confirm
        self._current: Connected | None = None
        self._waiting: list[Call] = []
        late = partial(Unavailable, "Redis did not answer in time")
        self._deadlines = None if within_s is None else Deadlines(within_s, late)
        self._answer_limit = TimeLimit(ANSWER_TIMEOUT_S)
        self._paused: dict[asyncio.Future[Any], asyncio.TimerHandle] = {}  # calls that wait for their next attempt
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        read: Callable[[Any], Any] = _unchanged,
        pauses: Sequence[float] = (),
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        """Call a script. Returns a future of `read(reply)`.

        The call is repeated after each of the `pauses` if it certainly had no effect, or if it is `repeatable` and
        Redis did not refuse it.

        Units: seconds.
        Raises: NotDone when it certainly had no effect; Refused; Unavailable when Redis did not answer (then the
        effect is unknown), or did not confirm (then it is stored, but less durably than configured); any error that
        `read` raises.
        """
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._deadlines is not None:
            self._deadlines.set(done)
        self._enter(Call(script, keys, args, read, pauses, repeatable, done))
        return done

    def _enter(self, call: Call) -> None:
        if self._closed:
            self._fail([call], NotDone("the broker is closing"))
        elif len(self._waiting) >= MAX_WAITING:
            self._fail([call], NotDone("Redis does not answer: too many calls wait for it"))
        else:
            self._waiting.append(call)
            if self._sender is None:
                self._sender = asyncio.create_task(self._send_all(), name="allim script calls")

    def _try_again(self, call: Call) -> None:
        del self._paused[call.done]
        self._enter(call)

    async def close(self) -> None:
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        if self._deadlines is not None:
            self._deadlines.clear()
        for done, pause in self._paused.items():
            pause.cancel()
            if not done.done():
                done.set_exception(NotDone("the broker is closing"))
        self._paused.clear()
        await self.drop()

    async def drop(self) -> None:
        """Close the connection; the next call makes another. The outcome of calls under way is unknown."""
        connected, self._current = self._current, None
        if connected is not None:
            await connected.connection.disconnect(nowait=True)

    async def _send_all(self) -> None:
        """Send pipelines until no call waits. As a task it starts in the next turn, after all calls of this turn."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._send([call for call in batch if not call.done.done()])  # some may be cancelled
        finally:
            self._sender = None
            self._fail(self._waiting, NotDone("Redis was not asked"))
            self._waiting = []

    async def _send(self, batch: Sequence[Call]) -> None:
        if not batch:
            return
        try:
            connected = await self._connected()
        except (RedisError, OSError) as error:
            log.warning("redis not reached", error=str(error) or type(error).__name__)
            self._fail(batch, NotDone("Redis cannot be reached"))
            return
        except BaseException:
            self._fail(batch, NotDone("Redis was not asked"))
            raise
        batch = self._allowed(batch)
        if not batch:
            return
        try:
            await self._execute(connected, batch)
        except (RedisError, OSError) as error:
            log.warning("redis connection lost", error=str(error) or type(error).__name__)
            await self.drop()
            self._fail(batch, Unavailable("Redis did not answer"))
        except BaseException:
            await self.drop()
            self._fail(batch, Unavailable("Redis did not answer"))
            raise

    async def _connected(self) -> Connected:
        """Return the connection; make a new one if it has ended."""
        if self._current is not None:
            try:
                if not await self._current.connection.can_read() and not _was_reset(self._current.connection):
                    await self._server.rights.renew(self._current.connection)
                    return self._current
            except (RedisError, OSError):
                pass
            await self.drop()
        self._current = await self._server.connect()
        return self._current

    def _allowed(self, batch: Sequence[Call]) -> Sequence[Call]:
        """Return the calls that the Redis user may make; fail the others. Redis would not undo a half-run script."""
        refused = [call for call in batch if not self._server.rights.allow(call.script.files)]
        if not refused:
            return batch
        self._fail(refused, Refused("Redis refused: NOPERM"))
        return [call for call in batch if call not in refused]

    async def _execute(self, connected: Connected, batch: Sequence[Call]) -> None:
        replies = await self._replies(connected, batch)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # those calls had no effect
            again = await self._replies(connected, [batch[i] for i in unknown], whole=True)
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        stored = not all(isinstance(reply, Exception) for reply in replies)
        unconfirmed = await self._confirm(connected.connection) if self._confirm and stored else None
        for call, reply in zip(batch, replies, strict=True):
            self._settle(call, reply, unconfirmed)
        if any(isinstance(reply, ReadOnlyError | RedisConnectionError) for reply in replies):
            await self.drop()  # a former master, or a lost sign-in: another connection may be better

    async def _replies(self, connected: Connected, batch: Sequence[Call], *, whole: bool = False) -> list[Any]:
        """Return Redis' answer to each call: a value, or the error that refuses it.

        Shape: `whole` sends each script's source with its first call, so that Redis cannot have forgotten it.
        """
        context = self._context(connected.run_id)
        named = set() if whole else {call.script for call in batch}
        commands = []
        for script, keys, args, *_ in batch:
            which = ("EVALSHA", script.sha) if script in named else ("EVAL", script.source)
            named.add(script)
            commands.append((*which, len(keys), *keys, *context, *args))
        replies: list[Any] = []
        with self._answer_limit:
            await write(connected.connection, commands)
            while len(replies) < len(batch):
                replies += await receive(connected.connection)
        if len(replies) > len(batch):
            raise RedisConnectionError("more answers than questions")
        return replies

    def _settle(self, call: Call, reply: Any, unconfirmed: str | None) -> None:
        if isinstance(reply, Exception):
            log.warning("redis refused a script", script=call.script.name, error=str(reply))
            self._server.rights.doubt(reply)
            kind = NotDone if (code := _code(reply)) in NO_EFFECT else Refused
            self._fail([call], kind(f"Redis refused: {code}"))
        elif unconfirmed is not None:
            self._fail([call], Unavailable(unconfirmed))
        elif not call.done.done():
            try:
                call.done.set_result(call.read(reply))
            except Exception as error:  # noqa: BLE001 - the caller raises it
                call.done.set_exception(error)

    def _fail(self, calls: Sequence[Call], error: Unavailable) -> None:
        """Repeat the calls that may be repeated after their pause; fail the others."""
        for call in calls:
            if call.done.done():
                continue
            again_changes_nothing = isinstance(error, NotDone) or (call.repeatable and not isinstance(error, Refused))
            if call.pauses and not self._closed and again_changes_nothing:
                again = call._replace(pauses=call.pauses[1:])
                pause = asyncio.get_running_loop().call_later(call.pauses[0], self._try_again, again)
                self._paused[call.done] = pause
            else:
                call.done.set_exception(error)


def _was_reset(connection: AbstractConnection) -> bool:
    # Divergence: `can_read` sees the end of a stream and not its reset, after which nothing can be read either.
    # It may go when redis-py asks the reader for its exception.
    writer = connection._writer
    return writer is None or writer.is_closing()


def _code(refused: Exception) -> str:
    """Return the first word of an error, its code. The rest is for the log."""
    return getattr(refused, "status_code", None) or str(refused).partition(" ")[0]
