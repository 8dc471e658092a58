"""Attacks on sockets, memory and time, at a size a test can afford: `python -m tests.system.attacks` has no limit.

What each of them must not do: keep a signed-in user's events back, or let a replica's memory grow with the attack.
"""

from collections.abc import Iterator
from functools import partial
from itertools import count, cycle

import pytest
from harness.cluster import Cluster, cluster
from harness.replicas import PUBLISH_KEY, replica, token

from tests.system.attacks import (
    Attack,
    Attacker,
    Counts,
    Latency,
    Watched,
    body,
    head,
    many_topics,
    rss_mib,
    silent,
    slow_body,
    stream,
    trickle,
    under,
    wave,
)

pytestmark = pytest.mark.anyio

BODY_TIMEOUT_S = 20  # a replica's, for a body of which hardly anything comes
HEAD_TIMEOUT_S = 20  # nginx's `client_header_timeout`
GROWTH_MIB = 30  # of one replica, over one attack
STREAMS_PER_ADDRESS, STREAMS_PER_USER = 50, 20


@pytest.fixture(scope="module")
def attacked() -> Iterator[Cluster]:
    with cluster(3, streams_per_address=STREAMS_PER_ADDRESS, streams_per_user=STREAMS_PER_USER) as started:
        yield started


async def attack(
    system: Cluster, attack: Attack, tried: int, hold_s: float, addresses: int = 20, watched_s: float | None = None
) -> Counts:
    """What became of it; the user noticed nothing, and no replica grew."""
    pids = [pid for member in system.members if (pid := member.pid) is not None]
    before = [rss_mib(pid) for pid in pids]

    watched = Watched(system.url, "watched", token("watched"), PUBLISH_KEY)
    (counts,), latency = await under(
        [wave(system.url, attack, tried, hold_s, addresses)], watched, watched_s or hold_s
    )

    growth = [rss_mib(pid) - was for pid, was in zip(pids, before, strict=True)]
    _show(f"{counts} {latency} growth {[round(mib, 1) for mib in growth]} MiB")
    expect_unnoticed(latency)
    assert len(pids) == 3
    assert max(growth) < GROWTH_MIB
    assert counts.refused == 0
    return counts


def expect_unnoticed(latency: Latency) -> None:
    assert latency.lost == 0
    assert latency.p50_s < 1
    assert latency.p99_s < 4


async def test_sockets_that_never_finish_a_head_are_ended_by_nginx(attacked: Cluster) -> None:
    """Half of them say nothing at all, the others a byte per second."""

    kinds = cycle([silent, trickle])

    async def either(attacker: Attacker) -> None:
        await next(kinds)(attacker)

    counts = await attack(attacked, either, 1500, HEAD_TIMEOUT_S + 10, watched_s=HEAD_TIMEOUT_S + 5)

    assert counts.open == 0
    assert counts.cut + counts.answers.get(408, 0) == counts.tried


async def test_bodies_far_over_the_limit_are_refused_before_they_are_read(attacked: Cluster) -> None:
    counts = await attack(attacked, body, 60, 5)

    assert counts.answers.get(413, 0) + counts.cut == counts.tried
    assert counts.answers.get(413, 0) > counts.tried / 2, "most of them read why"


async def test_bodies_that_do_not_say_how_long_they_are_are_refused_at_the_limit(attacked: Cluster) -> None:
    counts = await attack(attacked, partial(body, announced=False), 60, 8)

    assert counts.answers.get(413, 0) + counts.cut == counts.tried


async def test_slow_bodies_are_ended_without_nginx_as_well() -> None:
    with replica() as alone:
        counts = await wave(alone.url, slow_body, 500, BODY_TIMEOUT_S + 20, addresses=1)

        assert (counts.open, counts.answers) == (0, {408: counts.tried})
        assert alone.metric("allim_refusals_total", limit="slow_body") == counts.tried


async def test_heads_over_the_limit_are_refused(attacked: Cluster) -> None:
    counts = await attack(attacked, head, 200, 5)

    assert set(counts.answers) <= {400, 431}
    assert counts.open == 0


async def test_streams_of_ten_thousand_topics_are_refused(attacked: Cluster) -> None:
    counts = await attack(attacked, many_topics(token("greedy")), 200, 5)

    assert set(counts.answers) <= {414, 422}
    assert counts.answers.get(414, 0) + counts.answers.get(422, 0) + counts.cut == counts.tried


async def test_one_address_holds_so_many_streams_and_no_more(attacked: Cluster) -> None:
    numbers = count(1)

    async def one(attacker: Attacker) -> None:
        await stream(attacker, token(f"crowd-{next(numbers)}"))

    counts = await attack(attacked, one, 200, 5, addresses=1)

    assert set(counts.answers) == {200, 429}
    assert STREAMS_PER_ADDRESS / 2 < counts.open <= STREAMS_PER_ADDRESS * len(attacked.members)


async def test_one_user_holds_so_many_streams_and_no_more(attacked: Cluster) -> None:
    counts = await attack(attacked, partial(stream, token=token("hog")), 100, 5)

    assert set(counts.answers) <= {200, 429}
    assert STREAMS_PER_USER / 2 < counts.open <= STREAMS_PER_USER


def _show(line: str) -> None:
    print(line)  # noqa: T201 - shown by `pytest -s`, and with every failure
