from pathlib import Path

import pytest
from harness.clocks import shifted_redis
from harness.replicas import SECRET
from harness.servers import Redis, free_port, redis_server

from allim.doctor import Finding, examine
from tests.brokers.guarded import guarded_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"ALLIM_DATA_DIR": str(tmp_path), "ALLIM_SECRET_KEY": SECRET}


def named(findings: list[Finding], what: str) -> Finding:
    [finding] = [finding for finding in findings if finding.subject == what]
    return finding


async def test_wrong_settings_are_the_only_finding() -> None:
    [finding] = await examine({"ALLIM_HEARTBEAT_S": "soon"}, None)

    assert (finding.subject, finding.ok) == ("settings", False)
    assert finding.detail.startswith("ALLIM_HEARTBEAT_S: ")


async def test_one_process_has_settings_and_a_database(environ: dict[str, str]) -> None:
    findings = await examine(environ, None)

    assert [(finding.subject, finding.ok) for finding in findings] == [
        ("settings", True),
        ("database", True),
        ("redis", True),
    ]
    assert named(findings, "database").detail.startswith("sqlite answers in ")
    assert named(findings, "redis").detail == "not used"


async def test_what_would_stop_a_start_is_found(environ: dict[str, str]) -> None:
    [short] = await examine({**environ, "ALLIM_PUBLISH_KEYS": "shop:short"}, None)
    [grant] = await examine({**environ, "ALLIM_PUBLISH_GRANTS": "shop=user:*"}, None)
    [twice] = await examine({**environ, "ALLIM_OLD_SECRET_KEYS": SECRET}, None)
    [file] = await examine({**environ, "ALLIM_CATALOGUE": "none.yaml"}, None)

    assert (short.ok, grant.ok, twice.ok, file.ok) == (False, False, False, False)
    assert short.detail.startswith("ALLIM_PUBLISH_KEYS: entry 1 has a secret of fewer than 20 characters")
    assert grant.detail.startswith("ALLIM_PUBLISH_KEYS: ")
    assert twice.detail.startswith("ALLIM_OLD_SECRET_KEYS: ")
    assert file.detail == "ALLIM_CATALOGUE: none.yaml: No such file or directory"


async def test_a_slip_of_the_pen_is_found(environ: dict[str, str]) -> None:
    finding = named(await examine({**environ, "ALLIM_HEARBEAT_S": "1"}, None), "settings")

    assert not finding.ok
    assert finding.advice == "ALLIM_HEARBEAT_S is no setting, ignored; did you mean ALLIM_HEARTBEAT_S?"


async def test_a_redis_that_will_do(environ: dict[str, str], redis: Redis) -> None:
    findings = await examine({**environ, "ALLIM_REDIS_URL": redis.url}, None)

    assert all(finding.ok for finding in findings)
    assert named(findings, "redis memory").detail == "noeviction"
    assert "reset" in named(findings, "redis durability").advice
    assert "PostgreSQL" in named(findings, "database").advice


async def test_a_redis_that_is_down(environ: dict[str, str]) -> None:
    findings = await examine({**environ, "ALLIM_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, None)

    finding = named(findings, "redis")
    assert not finding.ok
    assert finding.detail.endswith(" refuses the connection")
    assert finding.advice == "start redis-server there, or correct ALLIM_REDIS_URL"


async def test_a_redis_that_deletes_without_a_word(environ: dict[str, str]) -> None:
    with redis_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        findings = await examine({**environ, "ALLIM_REDIS_URL": server.url}, None)

    finding = named(findings, "redis memory")
    assert (finding.ok, finding.detail) == (False, "maxmemory-policy is allkeys-lru")
    assert "noeviction" in finding.advice


@pytest.mark.parametrize(("redis_s", "detail"), [(90, "90.0 s behind"), (-3600, "3600.0 s ahead")])
async def test_a_redis_whose_clock_is_another(environ: dict[str, str], redis_s: int, detail: str) -> None:
    with shifted_redis() as shifted:
        environ = {**environ, "ALLIM_REDIS_URL": shifted.url}
        assert named(await examine(environ, None), "redis clock").ok
        shifted.shift(redis_s)

        finding = named(await examine(environ, None), "redis clock")

    assert (finding.ok, finding.detail) == (False, f"this machine is {detail}")
    assert "NTP" in finding.advice


@pytest.mark.parametrize(("used", "ok", "advised"), [(0.5, True, False), (0.8, True, True), (0.95, False, True)])
async def test_how_full_redis_is_is_told_before_it_is_full(
    environ: dict[str, str], used: float, ok: bool, advised: bool
) -> None:
    with redis_server() as server, server.client() as client:
        client.setrange("filler", 20_000_000, "x")  # beside which the buffers of a connection are little
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / used))
        findings = await examine({**environ, "ALLIM_REDIS_URL": server.url}, None)

    finding = named(findings, "redis room")
    assert (finding.ok, bool(finding.advice)) == (ok, advised)


async def test_a_redis_without_a_limit_of_memory(environ: dict[str, str], redis: Redis) -> None:
    finding = named(await examine({**environ, "ALLIM_REDIS_URL": redis.url}, None), "redis room")

    assert finding.ok
    assert "maxmemory" in finding.advice


async def test_the_redis_of_compose_will_do(environ: dict[str, str]) -> None:
    with guarded_redis() as guarded:
        findings = await examine({**environ, "ALLIM_REDIS_URL": guarded.url, "ALLIM_DURABILITY": "memory"}, None)

    assert [finding.subject for finding in findings if not finding.ok] == []
    assert named(findings, "redis rights").detail == "complete"
    assert named(findings, "redis replay").detail == "the append-only file can be replayed"


async def test_a_redis_user_without_a_right_and_a_file_that_cannot_be_replayed(environ: dict[str, str]) -> None:
    with guarded_redis() as guarded:
        guarded.do("ACL", "SETUSER", "allim", "-rpush")
        guarded.do("ACL", "SETUSER", "default", "reset")
        findings = await examine({**environ, "ALLIM_REDIS_URL": guarded.url}, None)
        guarded.do("ACL", "SETUSER", "allim", "-acl|dryrun")
        unknown = named(await examine({**environ, "ALLIM_REDIS_URL": guarded.url}, None), "redis replay")
        guarded.do("ACL", "SETUSER", "allim", "-info")
        [*_, barred] = await examine({**environ, "ALLIM_REDIS_URL": guarded.url}, None)

    assert (named(findings, "redis rights").ok, named(findings, "redis replay").ok) == (False, False)
    assert named(findings, "redis rights").detail == "this Redis user lacks rights: ACL SETUSER … +rpush"
    assert "resetpass ~* &* +@all" in named(findings, "redis replay").advice
    assert (unknown.ok, "not known" in unknown.detail) == (True, True)
    assert (barred.subject, barred.ok) == ("redis rights", False)
    assert "+info" in barred.detail


@pytest.mark.parametrize(("durability", "reason"), [("replica", "no replica"), ("disk", "no append-only file")])
async def test_a_redis_that_cannot_confirm(
    environ: dict[str, str], redis: Redis, durability: str, reason: str
) -> None:
    asked = {**environ, "ALLIM_REDIS_URL": redis.url, "ALLIM_DURABILITY": durability}
    finding = named(await examine(asked, None), "redis confirmation")

    assert not finding.ok
    assert reason in finding.detail


@pytest.mark.parametrize(
    ("append_only", "sync", "ok"), [("no", "always", False), ("yes", "everysec", False), ("yes", "always", True)]
)
async def test_a_redis_that_is_said_to_be_durable_must_be(
    environ: dict[str, str], append_only: str, sync: str, ok: bool
) -> None:
    with redis_server("--appendonly", append_only, "--appendfsync", sync) as server:
        findings = await examine({**environ, "ALLIM_REDIS_URL": server.url, "ALLIM_REDIS_DURABLE": "1"}, None)

    assert named(findings, "redis durability").ok is ok


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://localhost/x", "'mysql'"),
        ("garbage", "cannot be read"),
        ("postgresql://u:hunter2@127.0.0.1:1/x", "127.0.0.1:1 refuses the connection"),
        ("postgresql://u:hunter2@no-such-host.invalid/x", "no host of this name"),
        ("postgresql://u:hunter2@127.0.0.1:1/x?color=red", "has a parameter not known here: 'color'"),
        ("sqlite:////proc/x/allim.db", "no such file or directory"),
    ],
)
async def test_a_database_that_cannot_be_used(environ: dict[str, str], url: str, said: str) -> None:
    finding = named(await examine({**environ, "ALLIM_DATABASE_URL": url}, None), "database")

    assert not finding.ok
    assert said in finding.detail
    assert finding.advice
    assert "hunter2" not in str(finding)
