"""The metrics of one replica, in a registry of its own.

Counted per event and per stream, never per write: a broadcast to 10,000 streams costs one update.
"""

import asyncio
import collections
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

_LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Names are listed in docs/operations.md."""

    def __init__(self, server_id: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        r = self.registry
        Gauge("allim_replica_info", "Which replica this is", ["server_id"], registry=r).labels(server_id).set(1)
        self._topics = Gauge("allim_topics", "Topics that a stream here waits for", registry=r)
        Gauge("allim_tasks", "Tasks of the event loop", registry=r).set_function(_tasks)
        self._plain = _Plain()
        r.register(self._plain)
        self._gaps = Counter(
            "allim_stream_gaps_total",
            "Streams told after a repair that events of a topic are lost",
            ["reason"],
            registry=r,
        )
        self._refused = Counter(
            "allim_refusals_total", "Streams and calls refused or displaced by a limit", ["limit"], registry=r
        )
        self._credentials_refused = Counter(
            "allim_credentials_refused_total", "Tokens, tickets, keys and passwords refused", ["reason"], registry=r
        )
        self._issuer_failures = Counter(
            "allim_issuer_key_failures_total", "Times an issuer's keys could not be read", registry=r
        )
        self._authorized = Counter(
            "allim_authorize_total", "Questions for topics to the application, by outcome", ["outcome"], registry=r
        )
        self._repairs = Counter("allim_link_repairs_total", "Broker links made anew", registry=r)
        self._bad_entries = Counter(
            "allim_bad_entries_total", "Entries in the broker that could not be read", registry=r
        )
        self._behind = Counter(
            "allim_streams_behind_total",
            "Times a live stream's buffer was full: it read on from history",
            registry=r,
        )
        self._late = Counter(
            "allim_link_out_of_order_total", "Times the link brought an event behind a newer one", registry=r
        )
        self._redis_memory: tuple[Gauge, Gauge] | None = None
        self._clock_skew = Gauge(
            "allim_clock_skew_seconds", "How far this machine's clock is ahead of the broker's", registry=r
        )
        self._jobs = Counter("allim_work_jobs_total", "Attempts at jobs, by outcome", ["job", "outcome"], registry=r)
        self._jobs_running = Gauge("allim_work_running", "Jobs that run here now", registry=r)
        self._job_waits = Gauge(
            "allim_work_late_seconds", "How long the oldest due job waited when this replica looked last", registry=r
        )
        self._offset_s = time.monotonic() - time.time()

    def count_topics(self, count: Callable[[], int]) -> None:
        """Ask this for the number of topics whenever the metrics are read."""
        self._topics.set_function(count)

    def opened(self) -> None:
        self._plain.open += 1
        self._plain.opened += 1

    def closed(self, reason: str) -> None:
        self._plain.open -= 1
        self._plain.closed[reason] += 1

    def published(self, count: int) -> None:
        self._plain.published += count

    def dispatched(self, accepted_ms: int, written: int) -> None:
        plain = self._plain
        plain.dispatched += 1
        if written:
            plain.written += written
            late_s = max(0.0, time.monotonic() - self._offset_s - accepted_ms / 1000)
            plain.late[bisect_left(_LATENCY_BUCKETS_S, late_s)] += 1
            plain.late_s += late_s

    def caught_up(self, count: int) -> None:
        self._plain.caught_up += count

    def gap(self, reason: str) -> None:
        self._gaps.labels(reason).inc()

    def refused(self, limit: str) -> None:
        self._refused.labels(limit).inc()

    def credentials_refused(self, reason: str) -> None:
        self._credentials_refused.labels(reason).inc()

    def fell_behind(self) -> None:
        self._behind.inc()

    def came_late(self) -> None:
        self._late.inc()

    def issuer_keys_not_read(self) -> None:
        self._issuer_failures.inc()

    def authorized(self, outcome: str) -> None:
        self._authorized.labels(outcome).inc()

    def link_repaired(self) -> None:
        self._repairs.inc()

    def bad_entry(self) -> None:
        self._bad_entries.inc()

    def redis_memory(self, used: int, most: int) -> None:
        """Units: bytes; `most` is 0 when Redis has no limit."""
        if self._redis_memory is None:  # of a replica without Redis nothing is told
            self._redis_memory = (
                Gauge("allim_redis_memory_used_bytes", "Memory that Redis uses", registry=self.registry),
                Gauge(
                    "allim_redis_memory_max_bytes", "Memory that Redis may use; 0: no limit", registry=self.registry
                ),
            )
        for gauge, value in zip(self._redis_memory, (used, most), strict=True):
            gauge.set(value)

    def pulse_heard(self, accepted_ms: int, sent_at_s: float) -> None:
        """Align the broker's clock: it read `accepted_ms` between our sending and our hearing.

        Units: Unix milliseconds of the broker's clock, seconds of our monotonic one.
        """
        self._offset_s = (sent_at_s + time.monotonic()) / 2 - accepted_ms / 1000

    def clock_skew(self, ahead_s: float) -> None:
        self._clock_skew.set(ahead_s)

    def count_running_jobs(self, count: Callable[[], int]) -> None:
        """Ask this for the number of running jobs whenever the metrics are read."""
        self._jobs_running.set_function(count)

    def job_ended(self, name: str, outcome: str) -> None:
        self._jobs.labels(name, outcome).inc()

    def job_waits(self, late_s: float) -> None:
        self._job_waits.set(late_s)

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)


class _Plain(Collector):
    """Counters of every event and every stream: plain numbers, which become metrics when they are read. The library's
    own counters take a lock each time.

    Shape: `closed` by reason; `late` counts the events between two buckets' bounds, the last one those above all.
    """

    def __init__(self) -> None:
        self.open = self.opened = 0
        self.closed: collections.Counter[str] = collections.Counter()
        self.published = self.dispatched = self.written = self.caught_up = 0
        self.late = [0] * (len(_LATENCY_BUCKETS_S) + 1)
        self.late_s = 0.0

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("allim_streams_open", "Streams open now", self.open)
        yield CounterMetricFamily("allim_streams_opened", "Streams opened", self.opened)
        closed = CounterMetricFamily("allim_streams_closed", "Streams ended, by reason", labels=["reason"])
        for reason, count in self.closed.items():
            closed.add_metric([reason], count)
        yield closed
        yield CounterMetricFamily("allim_catch_up_events", "Events written to streams from history", self.caught_up)
        yield CounterMetricFamily("allim_events_published", "Events accepted here", self.published)
        yield CounterMetricFamily(
            "allim_events_dispatched", "Events heard from the broker for streams held here", self.dispatched
        )
        yield CounterMetricFamily("allim_events_written", "Events written to streams, live", self.written)
        bounds = [*map(str, map(float, _LATENCY_BUCKETS_S)), "+Inf"]
        yield HistogramMetricFamily(
            "allim_publish_to_write_seconds",
            "Seconds from publish accepted to bytes written, per dispatched event; the broker's clock is "
            "aligned by the own pulse, resolution 1 ms",
            list(zip(bounds, accumulate(self.late), strict=True)),
            self.late_s,
        )


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # read where no loop runs
        return 0
