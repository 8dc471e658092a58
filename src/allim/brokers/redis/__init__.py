"""Broker and ledger of the clustered form: Redis 7.0 or later, or Valkey."""

from allim.brokers.redis.broker import RedisBroker
from allim.brokers.redis.ledger import RedisLedger

__all__ = ["RedisBroker", "RedisLedger"]
