"""Broker and ledger of the embedded form: one process, all state in its memory."""

from allim.brokers.memory.broker import MemoryBroker
from allim.brokers.memory.ledger import MemoryLedger

__all__ = ["MemoryBroker", "MemoryLedger"]
