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
    # No frame is written for these: the reader has left, or cannot read it.
    CLIENT_LEFT = "client_left"
    CLIENT_VANISHED = "client_vanished"
    CLIENT_SPOKE = "client_spoke"
    SLOW_READER = "slow_reader"
    LINK_FAILED = "link_failed"

    @property
    def reconnect(self) -> bool:
        """Return whether the reader should open the stream again."""
        return self not in _FINAL

    @property
    def told(self) -> bool:
        """Return whether the reader gets a `stream.close` frame before the end."""
        return self in _TOLD


_FINAL = frozenset({CloseReason.TOKEN_EXPIRED, CloseReason.KICKED, CloseReason.SIGNED_OUT, CloseReason.REPLACED})
_TOLD = _FINAL | {CloseReason.DRAIN, CloseReason.ROTATE}
