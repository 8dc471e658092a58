"""What is attacked, and what must be true of it after each attack: it lives, it is no wiser, its log can be read."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
from harness.deployment import deployment
from harness.replicas import Replica, replica
from harness.servers import Redis

NGINX_REFUSES = {"501", "505"}  # unknown transfer codings and versions of HTTP
PREFIX = "hostile"  # of the keys in Redis
NO_LIMITS: dict[str, Any] = {
    "user_calls_per_min": 10_000_000,
    "address_calls_per_min": 10_000_000,
    "sign_in_tries_per_min": 100_000,
    "streams_per_user": 100_000,
    "streams_per_address": 100_000,
}


@dataclass
class Target:
    """A replica, or nginx before replicas. `logs` are those of all its processes."""

    port: int
    replicas: list[Replica]
    logs: list[Path]
    redis: Redis | None = None
    read: dict[Path, int] = field(default_factory=dict)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=15))  # one for all: dear to make

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def check(self) -> None:
        """Every replica is the one that was started and answers; each new line of a log is one JSON object, and
        none tells of an error that nobody foresaw."""
        for running in self.replicas:
            assert running.process.poll() is None, "a replica died"
            assert self.http.get(f"{running.url}/healthz").status_code == 200
        for log in self.logs:
            for record in self._new_records(log):
                assert record.get("event") != "unexpected error", record
                assert int(str(record.get("status") or 0)) < 500 or record["status"] in NGINX_REFUSES, record

    def _new_records(self, log: Path) -> list[dict[str, object]]:
        written = log.read_bytes()
        begin, self.read[log] = self.read.get(log, 0), written.rfind(b"\n") + 1
        lines = written[begin : self.read[log]].decode().splitlines()  # also at U+0085, U+2028 and their like
        records = [json.loads(line) for line in lines]
        assert all(isinstance(record, dict) for record in records)
        return records


@pytest.fixture(scope="package")
def memory() -> Iterator[Target]:
    """One replica by itself."""
    with (
        replica(drain_s=0, heartbeat_s=1, **NO_LIMITS) as running,
        Target(running.port, [running], [running.log]) as target,
    ):
        yield target


@pytest.fixture(scope="package")
def clustered(redis: Redis) -> Iterator[Target]:
    """One replica over Redis."""
    settings: dict[str, Any] = {
        "redis_url": redis.url,
        "redis_prefix": PREFIX,
        "drain_s": 0,
        "heartbeat_s": 1,
        "pulse_s": 0.2,
    }
    with (
        replica(**settings, **NO_LIMITS) as running,
        Target(running.port, [running], [running.log], redis) as target,
    ):
        yield target


@pytest.fixture(scope="package")
def fronted(redis: Redis) -> Iterator[Target]:
    """Two replicas behind nginx, which takes us for somebody from elsewhere where `/metrics` is concerned."""
    elsewhere = {"allow 127.0.0.1;": "deny 127.0.0.1;"}
    settings: dict[str, Any] = {"redis_prefix": f"{PREFIX}-front", "drain_s": 0, "heartbeat_s": 1, "pulse_s": 0.2}
    with deployment(2, redis=redis, proxied=False, nginx_changed=elsewhere, **settings, **NO_LIMITS) as deployed:
        assert deployed.nginx is not None
        logs = [running.log for running in deployed.replicas]
        with Target(deployed.nginx.port, deployed.replicas, [*logs, deployed.nginx.log]) as target:
            yield target


@pytest.fixture(params=["memory", "clustered"])
def alone(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A replica that is asked directly."""
    yield from _checked(request)


@pytest.fixture(params=["fronted"])
def front(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A deployment that is asked through nginx."""
    yield from _checked(request)


@pytest.fixture(params=["memory", "fronted"])
def either(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A replica that is asked directly, and one that is asked through nginx."""
    yield from _checked(request)


@pytest.fixture(params=["clustered"])
def over_redis(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A replica whose keys in Redis can be looked at."""
    yield from _checked(request)


def _checked(request: pytest.FixtureRequest) -> Iterator[Target]:
    target: Target = request.getfixturevalue(request.param)
    yield target
    target.check()
