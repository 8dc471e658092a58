"""The metrics of one replica, in a registry of its own.

Counted per event, never per write: a broadcast to 10,000 streams costs one update.
"""

import asyncio
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

_LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Names are listed in docs/operations.md."""

    def __init__(self, server_id: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        r = self.registry
        Gauge("allim_replica_info", "Which replica this is", ["server_id"], registry=r).labels(server_id).set(1)
        self._open = Gauge("allim_streams_open", "Streams open now", registry=r)
        self._topics = Gauge("allim_topics", "Topics that a stream here waits for", registry=r)
        Gauge("allim_tasks", "Tasks of the event loop", registry=r).set_function(_tasks)
        self._opened = Counter("allim_streams_opened_total", "Streams opened", registry=r)
        self._closed = Counter("allim_streams_closed_total", "Streams ended, by reason", ["reason"], registry=r)
        self._published = Counter("allim_events_published_total", "Events accepted here", registry=r)
        self._dispatched = Counter(
            "allim_events_dispatched_total", "Events heard from the broker for streams held here", registry=r
        )
        self._written = Counter("allim_events_written_total", "Events written to streams, live", registry=r)
        self._caught_up = Counter("allim_catch_up_events_total", "Events written to streams from history", registry=r)
        self._gaps = Counter(
            "allim_stream_gaps_total",
            "Streams told after a repair that events of a topic are lost",
            ["reason"],
            registry=r,
        )
        self._refused = Counter(
            "allim_refusals_total", "Streams and calls refused or displaced by a limit", ["limit"], registry=r
        )
        self._issuer_failures = Counter(
            "allim_issuer_key_failures_total", "Times the outside issuer's keys could not be read", registry=r
        )
        self._repairs = Counter("allim_link_repairs_total", "Broker links made anew", registry=r)
        self._bad_entries = Counter(
            "allim_bad_entries_total", "Entries in the broker that could not be read", registry=r
        )
        self._latency = Histogram(
            "allim_publish_to_write_seconds",
            "Seconds from publish accepted to bytes written, per dispatched event; the broker's clock is "
            "aligned by the own pulse, resolution 1 ms",
            buckets=_LATENCY_BUCKETS_S,
            registry=r,
        )
        self._skew_s = 0.0

    def count_topics(self, count: Callable[[], int]) -> None:
        """Ask this for the number of topics whenever the metrics are read."""
        self._topics.set_function(count)

    def opened(self) -> None:
        self._open.inc()
        self._opened.inc()

    def closed(self, reason: str) -> None:
        self._open.dec()
        self._closed.labels(reason).inc()

    def published(self, count: int) -> None:
        self._published.inc(count)

    def dispatched(self, accepted_ms: int, written: int) -> None:
        self._dispatched.inc()
        if written:
            self._written.inc(written)
            self._latency.observe(max(0.0, time.time() - self._skew_s - accepted_ms / 1000))

    def caught_up(self, count: int) -> None:
        self._caught_up.inc(count)

    def gap(self, reason: str) -> None:
        self._gaps.labels(reason).inc()

    def refused(self, limit: str) -> None:
        self._refused.labels(limit).inc()

    def issuer_keys_not_read(self) -> None:
        self._issuer_failures.inc()

    def link_repaired(self) -> None:
        self._repairs.inc()

    def bad_entry(self) -> None:
        self._bad_entries.inc()

    def pulse_heard(self, accepted_ms: int, sent_at_s: float) -> None:
        """Align the broker's clock: it read `accepted_ms` between our sending and our hearing.

        Units: Unix milliseconds of the broker's clock, Unix seconds of ours.
        """
        self._skew_s = (sent_at_s + time.time()) / 2 - accepted_ms / 1000

    def text(self) -> bytes:
        """The Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)


def _tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # read where no loop runs
        return 0
