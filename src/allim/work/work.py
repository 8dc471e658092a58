"""Durable background work: the part that domains use."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Protocol, TypeVar, overload

import structlog
from pydantic import TypeAdapter
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from allim.errors import AllimError, FieldError, TooLarge
from allim.storage import reading, writing
from allim.telemetry import Metrics
from allim.work import store
from allim.work.job import Handler, Job
from allim.work.schedules import Schedule, Schedules
from allim.work.store import DeadJob
from allim.work.worker import Worker

log = structlog.get_logger(__name__)

Arguments = TypeVar("Arguments")
Run = Callable[[Job[Arguments]], Awaitable[None]]

AT_ONCE = 8
GRACE_S = 10.0
RETRIES = 10
TIMEOUT_S = 60.0
REST_S = 300.0
MAX_ARGUMENTS_BYTES = 65_536
MAX_KEY_CHARS = 200
HINT_TIMEOUT_S = 1.0
HINT_DELAY_S = 0.02  # jobs that are enqueued within it share a hint
_HINT = "work"


class Hints(Protocol):
    """Carries a hint to every replica. Implementation: `allim.hub.Hub`."""

    async def hint(self, name: str) -> None:
        """Raises: Unavailable."""

    def on_hint(self, name: str, handler: Callable[[], None]) -> None: ...


class Work:
    """The jobs of all domains: their handlers, schedules and rows.

    Promised: a job whose transaction commits is run until it is completed or dead, whichever replicas die; data that
    a handler stores in the transaction of `Job.complete` are stored once.
    Not promised: that a handler is run once. It is run again after a crash, so its effects outside that transaction
    must be harmless when repeated.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        hints: Hints,
        server_id: str,
        metrics: Metrics | None = None,
        *,
        at_once: int = AT_ONCE,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Shape: `now` gives Unix seconds by the clock that the replicas share."""
        self._engine = engine
        self._hints = hints
        self._now = now
        self._handlers: dict[str, Handler[Any]] = {}
        self._schedules = Schedules()
        self._worker = Worker(
            engine,
            self._handlers,
            self._schedules,
            self._call_others,
            metrics or Metrics(),
            server_id,
            at_once,
            now,
        )
        self._caller: asyncio.Task[None] | None = None
        self._call_again = False
        self._fresh = f"allim work {id(self)}"  # set on a connection whose transaction has enqueued a job
        event.listen(engine.sync_engine, "checkin", self._returned)
        hints.on_hint(_HINT, self._hinted)

    # Handlers and schedules -----------------------------------------------------------------------------------

    @overload
    def job(
        self, name: str, *, retries: int | None = ..., timeout_s: float = ..., rest_s: float = ...
    ) -> Callable[[Run[dict[str, Any]]], Run[dict[str, Any]]]: ...

    @overload
    def job(
        self,
        name: str,
        arguments: type[Arguments],
        *,
        retries: int | None = ...,
        timeout_s: float = ...,
        rest_s: float = ...,
    ) -> Callable[[Run[Arguments]], Run[Arguments]]: ...

    def job(
        self,
        name: str,
        arguments: Any = dict[str, Any],
        *,
        retries: int | None = RETRIES,
        timeout_s: float = TIMEOUT_S,
        rest_s: float = REST_S,
    ) -> Callable[[Run[Any]], Run[Any]]:
        """Return a decorator that registers the handler of a job's name.

        Shape: `arguments` is a type that pydantic validates and writes as JSON; a dict by default. After `retries`
        further attempts the job is dead; with None it is tried for ever. Errors that are `retryable`, such as
        Unavailable, do not count.
        Units: `timeout_s` for one attempt; the rests between attempts grow from 1 s to `rest_s`.
        Raises: ValueError for a name that is taken or has over 128 characters.
        """
        if name in self._handlers or not 0 < len(name) <= 128:
            raise ValueError(f"the name of a job is taken, or not 1 to 128 characters long: {name!r}")

        def register(run: Run[Any]) -> Run[Any]:
            self._handlers[name] = Handler(name, TypeAdapter(arguments), run, retries, timeout_s, rest_s)
            return run

        return register

    def schedule(self, name: str, cron: str, arguments: object = None) -> None:
        """Run a job at the times of a cron expression, in UTC: once per due time, on one of the replicas.

        A time that passes while no replica runs is made up for once, by the next replica that starts.
        Shape: five fields, or six with seconds first.
        Raises: ValueError for a wrong expression, or wrong arguments.
        """
        self._schedules.add(Schedule(name, cron, self._written(name, {} if arguments is None else arguments)))

    # Jobs -----------------------------------------------------------------------------------------------------

    async def enqueue(
        self,
        connection: AsyncConnection,
        name: str,
        arguments: object,
        *,
        due: float | datetime | None = None,
        key: str | None = None,
    ) -> str:
        """Store a job in the caller's transaction: it is run if that commits. Returns its ID.

        Shape: `key` makes it idempotent: while a job of this name and key is known, its ID is returned and nothing is
        stored. It is known until a day after it is done, or 30 days after it is dead.
        Units: `due` in Unix seconds, or a datetime with a time zone.
        Raises: ValueError for a name without handler, for wrong arguments, and for a key of over 200 characters;
        TooLarge naming `arguments`.
        """
        written = self._written(name, arguments)
        if key is not None and (not 0 < len(key) <= MAX_KEY_CHARS or key.startswith(store.SCHEDULED)):
            raise ValueError(f"the key of a job must have 1 to {MAX_KEY_CHARS} characters: {key[:20]!r}")
        now = self._now()
        job_id = await store.add(connection, store.new_id(), name, key, written, _due_at(due, now), now)
        connection.sync_connection.info[self._fresh] = True  # type: ignore[union-attr]
        return job_id

    async def dead(self, limit: int = 100) -> list[DeadJob]:
        """Return the newest dead jobs.

        Raises: Unavailable.
        """
        return await dead_jobs(self._engine, limit)

    async def retry(self, job_ids: Collection[str] | None = None) -> int:
        """Try dead jobs again, all of them by default. Returns their number.

        Raises: Unavailable.
        """
        async with writing(self._engine) as connection:
            connection.sync_connection.info[self._fresh] = True  # type: ignore[union-attr]
            return await store.retry(connection, job_ids)

    # Life -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, grace_s: float = GRACE_S) -> AsyncIterator[None]:
        """Run jobs until the block ends, then leave."""
        self._worker.start()
        try:
            yield
        finally:
            await self.leave(grace_s)

    async def leave(self, grace_s: float) -> None:
        """Take no more jobs; end those in hand within `grace_s`, or give them back. Repeating it is harmless."""
        await self._worker.leave(grace_s)
        if self._caller is not None:
            await asyncio.gather(self._caller, return_exceptions=True)

    async def check(self) -> None:
        """Check readiness.

        Raises: Unavailable when this replica takes no jobs.
        """
        await self._worker.check()

    # Hints ----------------------------------------------------------------------------------------------------
    # A new job is taken by its own replica if that has room, without any message. Otherwise the others get a hint. A
    # hint that is lost delays a job until the next sweep.

    def _returned(self, _connection: object, record: Any) -> None:
        """A connection's transaction has ended and the pool has it back: look for its jobs, if it enqueued some."""
        if record.info.pop(self._fresh, False) and not self._worker.wake():
            self._call_others()

    def _hinted(self) -> None:
        self._worker.wake()

    def _call_others(self) -> None:
        self._call_again = True
        if self._caller is None or self._caller.done():
            self._caller = asyncio.get_running_loop().create_task(self._call(), name="allim work hint")

    async def _call(self) -> None:
        while self._call_again:
            await asyncio.sleep(HINT_DELAY_S)
            self._call_again = False
            try:
                async with asyncio.timeout(HINT_TIMEOUT_S):
                    await self._hints.hint(_HINT)
            except (AllimError, TimeoutError) as error:
                log.warning("hint not sent", reason=str(error) or type(error).__name__)

    def _written(self, name: str, arguments: object) -> str:
        handler = self._handlers.get(name)
        if handler is None:
            raise ValueError(f"no job has the name {name!r}")
        written = handler.arguments.dump_json(handler.arguments.validate_python(arguments))
        if len(written) > MAX_ARGUMENTS_BYTES:
            message = f"they are {len(written)} bytes, the limit is {MAX_ARGUMENTS_BYTES}"
            raise TooLarge(f"arguments: {message}", [FieldError("arguments", message)])
        return written.decode()


def _due_at(due: float | datetime | None, now: float) -> float:
    if due is None:
        return now
    if isinstance(due, datetime):
        if due.tzinfo is None:
            raise ValueError("due: a datetime needs a time zone")
        return due.timestamp()
    return float(due)


async def dead_jobs(engine: AsyncEngine, limit: int = 100) -> list[DeadJob]:
    """Return the newest dead jobs.

    Raises: Unavailable.
    """
    async with reading(engine) as connection:
        return await store.dead(connection, limit)


async def retry_jobs(engine: AsyncEngine, job_ids: Collection[str] | None = None) -> int:
    """Try dead jobs again, all of them by default: replicas find them when they look. Returns their number.

    Raises: Unavailable.
    """
    async with writing(engine) as connection:
        return await store.retry(connection, job_ids)
