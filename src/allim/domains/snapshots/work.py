"""Brings snapshots and replicas together: the queue, the sweeper, and how many at once.

A message in the queue is only a hint that a row may want work. Messages may be lost, doubled or late; the rows
(`store`) say what is owed, and the sweeper finds what no message reached. That is on purpose: taskiq-redis
claims the messages of a dead consumer only after it has fetched a new one, so an idle queue would never hand
them on. Hence also the acknowledgement on receipt: nothing waits in the queue for a replica to finish.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine
from taskiq import AsyncBroker, InMemoryBroker
from taskiq.acks import AcknowledgeType
from taskiq.exceptions import TaskiqError
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from allim.domains.snapshots import store
from allim.errors import AllimError, Unavailable
from allim.storage import writing

log = structlog.get_logger(__name__)

AT_ONCE = 8
GRACE_S = 10.0
SWEEP_S = 5.0
LOOK_AGAIN_S = 10.0
SEND_TIMEOUT_S = 1.0
CLOSE_TIMEOUT_S = 3.0  # a little more than a quiet read of the queue takes
_TASK = "snapshots.generate"
_BLOCK_MS = 2000
_MAX_DELAY_S = 5.0

Attempt = Callable[[str], Awaitable[object]]
"""Does what is owed on one snapshot; raises nothing but cancellation, and is then tried again elsewhere."""


def open_queue(pool: Mapping[str, Any] | None, name: str, consumer: str) -> AsyncBroker:
    """The queue over all replicas, or one inside this process when there is no Redis.

    Shape: `pool` is what a pool of connections to Redis is made with, at least its `url`; `name` is the Redis key,
    such as `allim:{0}:work`; `consumer` is best the server's id: Redis never
    forgets a consumer's name, so one that changes with every start would pile up.
    """
    if pool is None:
        return InMemoryBroker()
    return RedisStreamBroker(
        **pool,
        queue_name=name,
        consumer_group_name="snapshots",
        consumer_name=consumer,
        consumer_id="0",  # "$" would skip what was sent before the group was made
        maxlen=10_000,  # acknowledged messages stay in a stream until it is trimmed
        xread_block=_BLOCK_MS,
        xread_count=1,  # more would wait here for a free slot while another replica idles
        idle_timeout=60_000,
        unacknowledged_lock_timeout=10.0,
        max_connection_pool_size=AT_ONCE + 8,
        socket_timeout=_BLOCK_MS / 1000 + 3,  # shorter than the block, each quiet read would look like an outage
        socket_connect_timeout=2.0,
        protocol=2,  # taskiq-redis reads the lists of RESP2; RESP3, redis-py's default, answers with maps
    )


class Worker:
    """This replica's share of the work."""

    def __init__(
        self,
        engine: AsyncEngine,
        queue: AsyncBroker,
        attempt: Attempt,
        at_once: int = AT_ONCE,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._queue = queue
        self._attempt = attempt
        self._at_once = at_once
        self._now = now
        self._slots = asyncio.Semaphore(at_once)
        self._stopping = asyncio.Event()
        self._in_hand: dict[str, asyncio.Task[None]] = {}
        self._loops: list[asyncio.Task[None]] = []

        async def take(snapshot_id: str) -> None:  # taskiq renames what it registers, and a method has no name
            await self._take(snapshot_id)

        self._task = queue.register_task(take, task_name=_TASK)

    async def start(self, snapshot_id: str) -> None:
        """Tell the replicas that the snapshot wants work. Never raises: what is not told is swept up."""
        await self._send(snapshot_id)

    @asynccontextmanager
    async def running(self, grace_s: float = GRACE_S) -> AsyncIterator[None]:
        """Take work until the block ends, then leave."""
        self._stopping = asyncio.Event()
        self._loops = [asyncio.create_task(self._sweep_on())]
        if isinstance(self._queue, InMemoryBroker):
            await self._queue.startup()
        else:
            self._loops.append(asyncio.create_task(self._listen_on()))
        try:
            yield
        finally:
            await self.leave(grace_s)
            await self._queue.shutdown()

    async def leave(self, grace_s: float) -> None:
        """Take no more work; finish what is in hand within `grace_s`, or hand it back. Repeating it is harmless."""
        self._stopping.set()
        ending = asyncio.create_task(self._end_loops())
        in_hand = dict(self._in_hand)
        if in_hand:
            await asyncio.wait(in_hand.values(), timeout=grace_s)
        unfinished = {snapshot_id: work for snapshot_id, work in in_hand.items() if not work.done()}
        for work in unfinished.values():
            work.cancel()  # the attempt gives its claim back
        await asyncio.gather(*unfinished.values(), return_exceptions=True)
        await asyncio.gather(ending, *map(self._send, unfinished))

    async def check(self) -> None:
        """For readiness. Raises: Unavailable when this replica takes no work."""
        if not self._loops or self._stopping.is_set() or any(loop.done() for loop in self._loops):
            raise Unavailable("No snapshots are generated here.")

    async def sweep(self) -> None:
        """Tell the replicas of each snapshot that nobody works on, though somebody should.

        Raises: Unavailable when the database does not answer.
        """
        now = self._now()
        async with writing(self._engine) as connection:
            unattended = await store.take_unattended(connection, now, now + LOOK_AGAIN_S)
        for snapshot_id in unattended:
            log.info("snapshot swept up", snapshot=snapshot_id)
            if not await self._send(snapshot_id):
                return  # nor would the others arrive; all are looked at again

    async def _send(self, snapshot_id: str) -> bool:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await self._task.kiq(snapshot_id)
        except (TaskiqError, TimeoutError, OSError) as error:
            log.warning("queue unavailable", snapshot=snapshot_id, error=type(error).__name__)
            return False
        return True

    async def _take(self, snapshot_id: str) -> None:
        """The task. The work is a task of our own, because taskiq may drop or cancel the one it runs in."""
        if self._stopping.is_set() or snapshot_id in self._in_hand:
            return
        work = asyncio.create_task(self._work(snapshot_id))
        self._in_hand[snapshot_id] = work
        work.add_done_callback(lambda _: self._in_hand.pop(snapshot_id, None))
        await asyncio.wait([work])

    async def _work(self, snapshot_id: str) -> None:
        async with self._slots:
            if not self._stopping.is_set():
                await self._attempt(snapshot_id)

    async def _sweep_on(self) -> None:
        while not self._stopping.is_set():
            try:
                await self.sweep()
            except AllimError as error:
                log.warning("sweep put off", reason=error.detail)
            except Exception:
                log.exception("sweep failed")
            await self._rest(SWEEP_S)

    async def _listen_on(self) -> None:
        """Listen to the queue, also after it was away. taskiq's own loop would come back without a pause."""
        delay_s = 0.5
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                # The start makes the consumer group again, should Redis have lost it.
                await self._receiver().listen(self._stopping)
            except Exception as error:  # noqa: BLE001 - whatever it is, the sweeper's hints need a listener
                log.warning("queue lost", error=type(error).__name__, reason=str(error)[:200])
                delay_s = 0.5 if time.monotonic() - began > 2 * _MAX_DELAY_S else min(2 * delay_s, _MAX_DELAY_S)
                await self._rest(delay_s)

    def _receiver(self) -> Receiver:
        self._queue.is_worker_process = True
        return Receiver(
            self._queue,
            run_startup=True,
            max_async_tasks=self._at_once,
            ack_type=AcknowledgeType.WHEN_RECEIVED,
        )

    async def _rest(self, about_s: float) -> None:
        """Wait, jittered so that replicas do not act in step, or until the end."""
        try:
            async with asyncio.timeout(about_s * random.uniform(0.8, 1.2)):
                await self._stopping.wait()
        except TimeoutError:
            pass

    async def _end_loops(self) -> None:
        """The loops see the end by themselves; one that hangs in a dead connection is cancelled."""
        _, hanging = await asyncio.wait(self._loops, timeout=CLOSE_TIMEOUT_S)
        for loop in hanging:
            loop.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
