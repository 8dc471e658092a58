"""Why streams end, and whether the reader should come back. The one table."""

from enum import StrEnum


class CloseReason(StrEnum):
    """The words that stand in `stream.close`, in logs and in metrics."""

    DRAIN = "drain"
    ROTATE = "rotate"
    TOKEN_EXPIRED = "token_expired"
    KICKED = "kicked"
    SIGNED_OUT = "signed_out"
    REPLACED = "replaced"  # too many streams of one user: this was the oldest
    # Endings nobody is left to be told of, or that a broken reader cannot be told:
    CLIENT_LEFT = "client_left"
    CLIENT_VANISHED = "client_vanished"
    CLIENT_SPOKE = "client_spoke"
    SLOW_READER = "slow_reader"
    LINK_FAILED = "link_failed"

    @property
    def reconnect(self) -> bool:
        """Whether the same request, made again, would be welcome."""
        return self not in _FINAL

    @property
    def told(self) -> bool:
        """Whether the reader gets a `stream.close` frame before the end."""
        return self in _TOLD


_FINAL = frozenset({CloseReason.TOKEN_EXPIRED, CloseReason.KICKED, CloseReason.SIGNED_OUT, CloseReason.REPLACED})
_TOLD = _FINAL | {CloseReason.DRAIN, CloseReason.ROTATE}
