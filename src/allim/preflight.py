"""Checks at the start, before anything runs: settings whose faults show only when Redis or the database is asked."""

import structlog

from allim.alone import alone
from allim.errors import Unusable
from allim.requirements import check_version
from allim.selection import select
from allim.settings import Settings, naming

log = structlog.get_logger(__name__)


async def check(settings: Settings, *, redis: bool = True) -> None:
    """Ask the database and Redis. A Redis that is not there yet is no reason to stop: a replica waits for it.

    Shape: `redis` is False where Redis is still to be started.
    Raises: SettingsError.
    """
    selection = select(settings)
    if settings.redis_url is None and (selection.stored or settings.key_in_folder):
        with alone(settings.data_dir):
            pass
    if selection.stored:
        from allim.storage import open_engine, usable  # late: not every replica has a database, or Redis

        with naming("DATABASE_URL"):
            engine = open_engine(settings.database_url)
            try:
                await usable(engine, selection.migrations())
            finally:
                await engine.dispose()
    if settings.redis_url is not None and redis:
        await _check_redis(settings.redis_url, settings)


async def _check_redis(url: str, settings: Settings) -> None:
    with naming("REDIS_URL", Unusable):
        check_version("redis")
    from allim.brokers.redis import durability, reach
    from allim.brokers.redis.rights import Rights

    rights = Rights(settings.redis_prefix, settings.durability, quiet=True)
    with naming("REDIS_URL"):
        fault = await reach.check(url, rights)
    if fault is not None:
        log.warning("redis not reached", error=fault.detail, advice=fault.advice)
        return
    with naming("DURABILITY"):
        await durability.check(url, settings.durability, rights)
