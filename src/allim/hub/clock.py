"""The clock that all replicas share: the broker's, which each replica learns from its pulses."""

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

SLOW_S = 1.0  # a request that took longer is too inexact a measure of the time
SKEW_S = 5.0  # between this machine's clock and the broker's; a larger one is logged


class SharedClock:
    """Unix seconds by the broker's clock; by this machine's clock until the first pulse was answered.

    Between two pulses it follows the monotonic clock, so a step of this machine's wall clock does not move it. Use it
    for times that one replica writes and another compares with its own.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._offset_s = wall() - monotonic()
        self._is_told = False

    def __call__(self) -> float:
        return self._monotonic() + self._offset_s

    def set(self, broker_s: float, asked_at: float) -> float:
        """Set the clock by the broker's answer to a request. Returns how far this machine's clock is ahead of it.

        Units: `broker_s` in Unix seconds of the broker's clock, `asked_at` in seconds of the monotonic clock.
        """
        answered_at = self._monotonic()
        if answered_at - asked_at <= SLOW_S:
            self._offset_s = broker_s - (asked_at + answered_at) / 2
        skew_s = self._wall() - self()
        if abs(skew_s) <= SKEW_S:
            self._is_told = False
        elif not self._is_told:
            self._is_told = True
            log.warning("this machine's clock differs from the broker's", ahead_s=round(skew_s, 1))
        return skew_s
