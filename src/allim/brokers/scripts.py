"""Lua scripts on Redis: calls made in one turn of the event loop go out in one pipeline.

One pipeline is under way at a time; what is called meanwhile waits for the next, so load makes batches larger
instead of connections more, and calls keep their order.
"""

import asyncio
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from allim.errors import Unavailable

log = structlog.get_logger(__name__)

MAX_BATCH = 512  # calls in one pipeline: bounds what one failure can take with it


class Script:
    """A Lua script with the shared clock in front, called by its digest."""

    def __init__(self, redis: Redis, name: str) -> None:
        folder = resources.files("allim.brokers")
        source = "\n".join((folder / part).read_text("utf-8") for part in ("clock.lua", f"{name}.lua"))
        self.name = name
        self.registered = redis.register_script(source)


class Call(NamedTuple):
    script: Script
    args: Sequence[Any]
    done: "asyncio.Future[Any]"


class ScriptCalls:
    """A queue of script calls over one Redis client.

    The client must not retry by itself: a call whose answer is lost may have happened.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: list[Call] = []
        self._sender: asyncio.Task[None] | None = None
        self._closed = False

    async def call(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The script's reply.

        Raises: Unavailable when Redis did not answer (then the effect is unknown) or refused.
        """
        if self._closed:
            raise Unavailable("the broker is closing")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Call(script, (script.registered.sha, len(keys), *keys, *args), done))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="allim script calls")
        return await done

    async def close(self) -> None:
        self._closed = True
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _send_all(self) -> None:
        """Runs until nothing waits. As a task it starts in the next turn, when this turn's calls are all here."""
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                await self._send(batch)
        finally:
            self._sender = None
            self._fail(self._waiting, Unavailable("the broker is closing"))
            self._waiting = []

    async def _send(self, batch: Sequence[Call]) -> None:
        try:
            replies = await self._execute(batch)
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:  # Redis was restarted: those calls had no effect, so they may be made again
                for script in {batch[i].script for i in unknown}:
                    await self._redis.script_load(script.registered.script)
                again = await self._execute([batch[i] for i in unknown])
                for i, reply in zip(unknown, again, strict=True):
                    replies[i] = reply
        except (RedisError, OSError) as error:
            self._fail(batch, Unavailable(f"Redis does not answer: {error}"))
        except asyncio.CancelledError:
            self._fail(batch, Unavailable("the broker is closing"))
            raise
        else:
            for call, reply in zip(batch, replies, strict=True):
                self._settle(call, reply)

    async def _execute(self, batch: Sequence[Call]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for call in batch:
            pipeline.execute_command("EVALSHA", *call.args)
        return await pipeline.execute(raise_on_error=False)

    def _settle(self, call: Call, reply: Any) -> None:
        if call.done.done():
            return  # the caller has gone
        if isinstance(reply, Exception):
            log.warning("redis refused a script", script=call.script.name, error=str(reply))
            call.done.set_exception(Unavailable(f"Redis refused: {reply}"))
        else:
            call.done.set_result(reply)

    def _fail(self, calls: Sequence[Call], error: Unavailable) -> None:
        for call in calls:
            if not call.done.done():
                call.done.set_exception(error)
