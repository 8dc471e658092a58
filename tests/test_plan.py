"""What a load needs: one example by hand, what must hold for every load, and the page that shows it."""

import json
import math
import re
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from allim.cli import main
from allim.plan import Each, Headroom, Impossible, Load, Measured, Part, Plan, Planner, as_text, plan

# Round figures, so that the example is worked by hand and stays when the measured ones change.
ROUND = Measured(
    rest_events_per_cpu_s=8_000,
    batch_events_per_cpu_s=40_000,
    heard_events_per_cpu_s=40_000,
    writes_per_cpu_s=200_000,
    openings_per_cpu_s=2_500,
    returns_per_cpu_s=2_000,
    replica_base_mib=100,
    stream_kib=4,
    socket_kib=4,
    redis_publish_us=8,
    redis_push_us=2,
    redis_request_us=10,
    redis_opening_us=100,
    redis_topic_bytes=4_000,
    redis_entry_bytes=100,
    redis_stream_bytes=500,
    redis_key_bytes=500,
    nginx_writes_per_cpu_s=150_000,
    nginx_requests_per_cpu_s=15_000,
    nginx_stream_kib=10,
    frame_bytes=60,
    heartbeat_bytes=60,
    push_bytes=150,
    packet_bytes=90,
)

loads = st.builds(
    Load,
    streams=st.integers(100, 20_000_000),
    events_per_s=st.floats(0, 200_000),
    fan_out=st.floats(0, 100),
    event_bytes=st.integers(1, 60_000),
    batch=st.integers(1, 1000),
    keyed=st.booleans(),
    history_events=st.integers(1, 100_000),
    history_ttl_s=st.floats(1, 100_000),
)


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, ["plan", *args])
    return result.exit_code, result.stdout, result.stderr


def needs(part: Part) -> dict[str, float]:
    return {need.name: need.needs for need in part.needs}


def test_an_example_worked_by_hand() -> None:
    each = Each(replica_memory_mib=2000, replica_open_files=50_256, local_ports=28_000)

    made = plan(Load(streams=81_000, events_per_s=2_000), ROUND, Headroom(), each)

    # 81,000 / 15 heartbeats; 81,000 / 810 openings
    assert {rate.name: rate.per_s for rate in made.rates} == {
        "events": 2000,
        "requests": 2000,
        "deliveries": 2000,
        "heartbeats": 5400,
        "writes": 7400,
        "openings": pytest.approx(100),
    }
    # Ports: 81,000 / 28,000 = 2.9, so three carry it and a fourth may be lost.
    assert (made.replicas.machines, made.replicas.first.name) == (4, "ports")
    replicas = needs(made.replicas)
    # 2,000 × (1/8,000 − 1/40,000) + 2,000 / 40,000 + 5,400 / 200,000 + 100 / 2,500
    assert replicas["CPU"] == pytest.approx(0.2 + 0.05 + 0.027 + 0.04)
    assert replicas["CPU in a storm"] == pytest.approx(81_000 / 4 / 2_000)
    assert replicas["memory"] == pytest.approx(81_000 * 8 / 1024)
    # 20,250 streams come back to three replicas with half a core each.
    assert made.storm_streams == 20_250
    assert made.storm_s == pytest.approx(20_250 / 2_000 / 1.5)
    # 2,000 × 8 + 2,000 × 10 + 100 × 100 µs
    assert needs(made.redis)["CPU"] == pytest.approx(0.016 + 0.020 + 0.010)
    # Every topic gets 2,000 / 81,000 × 3,600 = 89 events within the hour: none goes, all are cut at 256.
    assert needs(made.redis)["memory"] == pytest.approx((81_000 * 256 * 300 + 81_000 * 500) / 2**30)
    nginx = needs(made.nginx)
    assert nginx["CPU"] == pytest.approx(7400 / 150_000 + 2100 / 15_000)
    assert nginx["memory"] == pytest.approx(81_000 * 18 / 2**20)
    assert made.nginx.machines == 2
    assert made.enough


def test_a_small_load_gets_small_machines_and_a_large_one_no_more_of_them() -> None:
    small = plan(Load(streams=500, events_per_s=10))
    large = plan(Load(streams=1_000_000, events_per_s=10_000, history_events=10))

    assert (small.each.nginx_cores, small.each.nginx_memory_gib) == (1, 2)
    assert "machines of 1 core and 2 GiB" in as_text(small)
    assert "Redis: 1, 1 core and 1 of at most 32 GiB" in as_text(small)
    assert large.each.nginx_cores == 8
    assert large.nginx.machines == plan(large.load, each=Each()).nginx.machines


def test_a_broadcast_is_heard_by_every_replica_and_written_to_every_stream() -> None:
    made = plan(Load(streams=100_000, events_per_s=10, fan_out=100_000), ROUND)

    carrying = made.replicas.machines - 1
    heard, written = 10 * carrying, 1_000_000 - 10 * carrying + 100_000 / 15
    fixed = 10 / 8_000 + (heard - 10) / 40_000 + written / 200_000 + 100_000 / 810 / 2_500
    assert needs(made.replicas)["CPU"] == pytest.approx(fixed)


@pytest.mark.parametrize(
    ("events_per_s", "kept"),
    [
        (0, 0),
        (1000 / 3600 * 0.001, 0.001),  # a topic in a thousand has had an event, and just one
        (1000 / 3600, math.e - 1),  # one an hour by chance: runs of them stay
        (1000, 256),
    ],
)
def test_history_grows_until_it_is_cut(events_per_s: float, kept: float) -> None:
    """The mean number kept per topic, by its memory."""
    huge = 10**6  # so large that the least memory of a topic does not show

    made = plan(Load(streams=1000, events_per_s=events_per_s, event_bytes=huge), ROUND)

    bytes_kept = needs(made.redis)["memory"] * 2**30 - 1000 * 500
    assert bytes_kept / 1000 / (huge + 100) == pytest.approx(kept, rel=1e-3, abs=1e-9)


@given(loads, st.integers(1, 1_000_000))
def test_more_streams_never_need_fewer_of_anything(load: Load, more: int) -> None:
    few, many = plan(load), plan(replace(load, streams=load.streams + more))

    assert many.replicas.machines >= few.replicas.machines
    assert many.nginx.machines >= few.nginx.machines
    assert needs(many.redis)["CPU"] >= needs(few.redis)["CPU"]


@given(loads, st.floats(0, 100_000))
def test_more_events_never_need_fewer_replicas(load: Load, more: float) -> None:
    assert (
        plan(replace(load, events_per_s=load.events_per_s + more)).replicas.machines >= plan(load).replicas.machines
    )


@given(loads)
def test_what_is_named_is_what_is_short(load: Load) -> None:
    made = plan(load)

    for part in (made.replicas, made.redis, made.nginx):
        assert part.first.ratio == max(need.needs / need.one_has for need in part.needs)
    assert made.bottleneck.ratio == max(need.ratio for need in made.redis.needs)
    assert made.enough == all(need.needs <= need.one_has for need in made.redis.needs)
    assert ("ONE REDIS IS NOT ENOUGH" in as_text(made)) is not made.enough
    assert f"Saturates first: Redis {made.bottleneck.name}," in as_text(made)


@given(loads)
def test_what_is_planned_is_enough_without_the_spare_ones_and_one_fewer_is_not(load: Load) -> None:
    made = plan(load)

    for part in (made.replicas, made.nginx):
        carrying = part.machines - part.spare
        assert all(need.ratio <= carrying for need in part.needs)
    assert made.replicas.machines == 2 or _too_few(made)


def _too_few(made: Plan) -> bool:
    carrying = made.replicas.machines - 2
    planner = Planner(made.load, Measured(), Headroom(), Each())
    return any(need.ratio > carrying for need in planner.replica_needs(carrying))


def test_what_no_number_of_replicas_hears_is_impossible() -> None:
    with pytest.raises(Impossible, match=r"^--fan-out: each replica hears 99,9\d\d events/s"):
        plan(Load(streams=1_000_000, events_per_s=100_000, fan_out=1_000_000), ROUND)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--streams", "0"), "--streams: must be at least 1"),
        (("--events-per-s", "-1"), "--events-per-s: must be at least 0"),
        (("--events-per-s", "nan"), "--events-per-s: must be at least 0"),
        (("--fan-out", "101"), "--fan-out: must be at most 100"),
        (("--fan-out", "some"), "--fan-out: must be a number or `all`"),
        (("--event-bytes", "0"), "--event-bytes: must be at least 1"),
        (("--batch", "1001"), "--batch: must be at most 1,000"),
        (("--history-events", "0"), "--history-events: must be at least 1"),
        (("--history-ttl-s", "inf"), "--history-ttl-s: must be at most 1,000,000,000,000"),
    ],
)
def test_a_wrong_number_is_one_line_that_names_its_option(args: tuple[str, str], told: str) -> None:
    assert run("--streams", "100", "--events-per-s", "1", *args) == (2, "", f"allim: {told}\n")


@pytest.mark.parametrize("args", [("--streams", "100"), ("--streams", "many", "--events-per-s", "1")])
def test_what_is_missing_or_no_number_is_named_too(args: tuple[str, ...]) -> None:
    status, out, err = run(*args)

    assert (status, out) == (2, "")
    assert re.search(r"'--(events-per-s|streams)'", err)


def test_json_says_the_same() -> None:
    args = ("--streams", "1000000", "--events-per-s", "50000", "--fan-out", "1")

    text, said = run(*args)[1], json.loads(run(*args, "--json")[1])

    assert f"replicas: {said['replicas']['count']:,} (1 may be lost)" in text
    assert f"Saturates first: {said['bottleneck']}, " in text
    assert said["load"]["streams"] == 1_000_000
    assert said["one_redis_is_enough"] is ("ONE REDIS IS NOT ENOUGH" not in text)
