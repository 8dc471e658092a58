"""Positions in the shared order of all events. Pure.

Source: design of the hybrid clock in docs/architecture.md, "Positions".
"""

import re
from functools import lru_cache
from typing import NamedTuple

_TEXT = re.compile(r"(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,8})\Z", re.ASCII)


class Position(NamedTuple):
    """A position in the order of all events of a shard; the text form is the SSE `id`.

    Shape: `<ms>-<seq>`, both without leading zeros.
    Units: `ms` in milliseconds since 1970, never below the broker's clock when it was given out.
    """

    ms: int
    seq: int

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"

    def after(self, now_ms: int) -> "Position":
        """Return the next position of a hybrid clock: the time, or this position plus one if the time is not
        later.
        """
        return Position(now_ms, 0) if now_ms > self.ms else Position(self.ms, self.seq + 1)

    @staticmethod
    @lru_cache(maxsize=4096)  # one comes up several times: an event's own, its publisher's, the next one's `prev`
    def parse(text: str) -> "Position":
        """Read the text form.

        Raises: ValueError unless it is exactly the text that `str` returns.
        """
        match = _TEXT.match(text)
        if match is None:
            raise ValueError("a position is <milliseconds>-<sequence>")
        return Position(int(match[1]), int(match[2]))


ZERO = Position(0, 0)
