"""After `kill -9` of a replica its streams come back through nginx, whole, and cost Redis a few commands each."""

import pytest
from harness.deployment import deployment

from bench.allim import SETTINGS
from bench.event_sources import Pace
from bench.storm import storm

STREAMS = 300
SENT_AT_MOST = 8  # for a stream that opens with catch-up: its rates, its standing, its history, its topics
RUN_AT_MOST = 40  # those within scripts as well


@pytest.mark.parametrize("restart", [False, True], ids=["it stays away", "it is started again"])
def test_every_stream_is_back_and_whole_after_a_replica_died(restart: bool) -> None:
    with deployment(3, proxied=False, **SETTINGS) as deployed:
        seen = storm(deployed, STREAMS, Pace(60, 3), restart=restart, calm_s=2, storm_s=3)

    assert seen.good, str(seen)
    assert seen.cut >= STREAMS / 4
    assert seen.commands_sent <= SENT_AT_MOST, str(seen)
    assert sum(seen.commands.values()) <= RUN_AT_MOST, str(seen)
