"""The broker and the ledger over Redis. A replica without Redis imports neither this module nor redis-py."""

from collections.abc import Mapping

from allim.brokers.redis import RedisBroker, RedisLedger
from allim.brokers.redis.peers import Peers
from allim.brokers.redis.rights import Rights
from allim.settings import Settings
from allim.telemetry import Metrics


def over_redis(
    settings: Settings, redis_url: str, metrics: Metrics, equal: Mapping[str, str]
) -> tuple[RedisBroker, RedisLedger]:
    """Return the broker and the ledger. Shape: `equal` are the settings that replicas compare.

    Raises: ValueError for a malformed address.
    """
    rights = Rights(settings.redis_prefix, settings.durability)
    ledger = RedisLedger(redis_url, settings.server_id, prefix=settings.redis_prefix, rights=rights)
    broker = RedisBroker(
        redis_url,
        settings.server_id,
        metrics,
        prefix=settings.redis_prefix,
        history_events=settings.history_events,
        history_ttl_s=settings.history_ttl_s,
        durability=settings.durability,
        durable=settings.redis_durable,
        rights=rights,
        peers=Peers(settings.server_id, (settings.secret_key, *settings.old_secret_keys), equal, settings.pulse_s),
    )
    return broker, ledger
