"""One cluster for all system tests; who kills a replica leaves it coming back, and the next test waits for it."""

import itertools
from collections.abc import Iterator

import pytest
from harness.cluster import Cluster, cluster

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    with cluster(replicas=3) as started:
        yield started


@pytest.fixture
def system(running: Cluster) -> Cluster:
    """nginx, Redis and three replicas, all ready."""
    running.until_whole()
    return running


@pytest.fixture
def who() -> str:
    """A user nobody else is."""
    return f"user-{next(_numbers)}"
