"""Lua scripts on Redis: calls made in one turn of the event loop go out in one pipeline.

One connection, one pipeline under way at a time; what is called meanwhile waits for the next, so load makes batches
larger instead of connections more, calls keep their order, and `WAIT` after a pipeline waits for all of it.
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

from allim.brokers.server import ANSWER_TIMEOUT_S, Lead, RedisServer, receive, write
from allim.deadlines import Deadlines, TimeLimit
from allim.errors import Unavailable

log = structlog.get_logger(__name__)

MAX_BATCH = 512  # calls in one pipeline: bounds what one failure can take with it
MAX_WAITING = 20_000  # calls that wait while Redis hangs
VITAL = "#!lua flags=allow-oom"  # for scripts that end sessions: they write little and must not wait for memory


NO_EFFECT = frozenset({"BUSY", "LOADING", "MASTERDOWN", "NOSCRIPT", "READONLY"})
"""Codes of errors with which Redis refuses a script before it has run, for a reason that passes."""


class NotDone(Unavailable):
    """The call certainly had no effect, so it may be made again."""


class Refused(Unavailable):
    """Redis refused the call for a reason that does not pass by itself, so it is not made again."""


def _as_it_is(reply: Any) -> Any:
    return reply


class Script:
    """A Lua script with the parts that it shares with others in front, called by its digest.

    Shape: one that is `vital` writes also while Redis has used up its memory. A full disk refuses it as a whole, and
    any other at its first write.
    """

    def __init__(self, name: str, *shared: str, vital: bool = False) -> None:
        folder = resources.files("allim.brokers")
        parts = [(folder / f"{part}.lua").read_text("utf-8") for part in (*shared, name)]
        self.name = name
        self.files = (*shared, name)
        self.source = "\n".join([VITAL, *parts] if vital else parts)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


class Call(NamedTuple):
    """Shape: `pauses` are those before each further try; `repeatable` is whether its effect may be had twice."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Any]
    read: Callable[[Any], Any]
    pauses: Sequence[float]
    repeatable: bool
    done: "asyncio.Future[Any]"


Context = Callable[[str], tuple[str, ...]]
"""What every script of a queue is told first, given the run ID of the process it will run in: see clock.lua."""

Confirm = Callable[[AbstractConnection], Awaitable[str | None]]
"""Asks, over the connection that wrote, whether the writes are as durable as they must be; says why not."""


class ScriptCalls:
    """A queue of script calls over one connection. Units: `within_s` seconds for a call, with all its tries."""

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
        self._lead: Lead | None = None
        self._waiting: list[Call] = []
        late = partial(Unavailable, "Redis did not answer in time")
        self._deadlines = None if within_s is None else Deadlines(within_s, late)
        self._answer_limit = TimeLimit(ANSWER_TIMEOUT_S)
        self._paused: dict[asyncio.Future[Any], asyncio.TimerHandle] = {}  # who is called for again, later
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    def call(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Any],
        *,
        read: Callable[[Any], Any] = _as_it_is,
        pauses: Sequence[float] = (),
        repeatable: bool = False,
    ) -> "asyncio.Future[Any]":
        """What `read` makes of the script's reply.

        Made again after each of the `pauses`, if it certainly had no effect, or is `repeatable` and Redis did not
        refuse it.

        Units: seconds.
        Raises: NotDone when it certainly had no effect; Refused; Unavailable when Redis did not answer (then the
        effect is unknown), or did not confirm (then it is stored, but less durably than asked); what `read` raises.
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
        """Give the connection up; the next call makes another. What is under way ends as unknown."""
        lead, self._lead = self._lead, None
        if lead is not None:
            await lead.connection.disconnect(nowait=True)

    async def _send_all(self) -> None:
        """Runs until nothing waits. As a task it starts in the next turn, when this turn's calls are all here."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._send([call for call in batch if not call.done.done()])  # some callers may have gone
        finally:
            self._sender = None
            self._fail(self._waiting, NotDone("Redis was not asked"))
            self._waiting = []

    async def _send(self, batch: Sequence[Call]) -> None:
        if not batch:
            return
        try:
            lead = await self._connected()
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
            await self._execute(lead, batch)
        except (RedisError, OSError) as error:
            log.warning("redis connection lost", error=str(error) or type(error).__name__)
            await self.drop()
            self._fail(batch, Unavailable("Redis did not answer"))
        except BaseException:
            await self.drop()
            self._fail(batch, Unavailable("Redis did not answer"))
            raise

    async def _connected(self) -> Lead:
        """The connection, made anew when it is known to have ended: nothing is sent into one that has."""
        if self._lead is not None:
            try:
                if not await self._lead.connection.can_read() and not _was_reset(self._lead.connection):
                    await self._server.rights.renew(self._lead.connection)
                    return self._lead
            except (RedisError, OSError):
                pass
            await self.drop()
        self._lead = await self._server.connect()
        return self._lead

    def _allowed(self, batch: Sequence[Call]) -> Sequence[Call]:
        """Those calls that the Redis user may make: a script that is refused half-way is not undone."""
        refused = [call for call in batch if not self._server.rights.allow(call.script.files)]
        if not refused:
            return batch
        self._fail(refused, Refused("Redis refused: NOPERM"))
        return [call for call in batch if call not in refused]

    async def _execute(self, lead: Lead, batch: Sequence[Call]) -> None:
        replies = await self._replies(lead, batch)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:  # those calls had no effect
            again = await self._replies(lead, [batch[i] for i in unknown], whole=True)
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        stored = not all(isinstance(reply, Exception) for reply in replies)
        unconfirmed = await self._confirm(lead.connection) if self._confirm and stored else None
        for call, reply in zip(batch, replies, strict=True):
            self._settle(call, reply, unconfirmed)
        if any(isinstance(reply, ReadOnlyError | RedisConnectionError) for reply in replies):
            await self.drop()  # it was the master once, or knows us no more; the next connection may find better

    async def _replies(self, lead: Lead, batch: Sequence[Call], *, whole: bool = False) -> list[Any]:
        """Return the answer of Redis to each call: a value, or the error that refuses it.

        Shape: `whole` sends each script itself with its first call, so that Redis cannot forget it between the two.
        """
        context = self._context(lead.run_id)
        named = set() if whole else {call.script for call in batch}
        commands = []
        for script, keys, args, *_ in batch:
            which = ("EVALSHA", script.sha) if script in named else ("EVAL", script.source)
            named.add(script)
            commands.append((*which, len(keys), *keys, *context, *args))
        replies: list[Any] = []
        with self._answer_limit:
            await write(lead.connection, commands)
            while len(replies) < len(batch):
                replies += await receive(lead.connection)
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
            except Exception as error:  # noqa: BLE001 - whoever waits raises it
                call.done.set_exception(error)

    def _fail(self, calls: Sequence[Call], error: Unavailable) -> None:
        """Of those whose callers have not gone, try again what may be tried again."""
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
    """The first word of what Redis said: the rest is for the log."""
    return getattr(refused, "status_code", None) or str(refused).partition(" ")[0]
