"""The names of all keys and channels in Redis. All begin with `<prefix>:{0}:`; `{0}` is the hash tag of the one
shard.

The scripts derive `expiry`, the history of a topic and `origin` from the name of the clock.
"""

import hashlib


class Keys:
    """Shape: an attribute that ends with `:` is completed by the caller with an ID of the token alphabet or a
    digest.
    """

    def __init__(self, prefix: str) -> None:
        self.shard = f"{prefix}:{{0}}:"
        # Events
        self.clock = self.shard + "clock"
        self.history = self.shard + "history:"  # and a topic
        self.idempotency = self.shard + "key:"  # and a digest: see `of_idempotency_key`
        self.replicas = self.shard + "replicas"
        self.used = self.shard + "used:"  # and the digest of a demand
        # Sessions
        self.signed_out = self.shard + "signed_out:"  # and `<user>/<session>`
        self.kicked = self.shard + "kicked:"  # and a user
        self.streams = self.shard + "streams:"  # and a user
        self.ticket = self.shard + "ticket:"  # and a ticket
        # Channels
        self.topic_channel = self.shard + "topic:"  # and a topic
        self.pulse_channel = self.shard + "pulse:"  # and a replica
        self.origin_channel = self.shard + "origin"
        self.hint_channel = self.shard + "hint"

    def of_idempotency_key(self, key: str | None) -> str:
        """Return a name of fixed form, because a publisher's key may hold any text. Without a key, a placeholder."""
        return self.idempotency + (hashlib.sha256(key.encode()).hexdigest() if key is not None else "")
