"""`Metrics`: counters and histograms for Prometheus. Policies report to an `Observer`."""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from compiler.serving.request import Response
from compiler.support.optional import optional_module


class CounterTally:
    """Local buffer of a prometheus_client counter."""

    __slots__ = ("_counter", "amount")

    def __init__(self, counter: Any) -> None:
        self._counter = counter
        self.amount = 0.0

    def flush(self) -> None:
        """Add the buffered amount."""
        if self.amount:
            self._counter.inc(self.amount)
            self.amount = 0.0


class HistogramTally:
    """Local buffer of a prometheus_client histogram."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_total")

    def __init__(self, histogram: Any) -> None:
        self._histogram = histogram
        self._bounds: list[float] = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def flush(self) -> None:
        """Add the buffered values: the library has no public way to add more than one value."""
        histogram = self._histogram
        for index, count in enumerate(self._counts):
            if count:
                histogram._buckets[index].inc(count)
                self._counts[index] = 0
        if self._total:
            histogram._sum.inc(self._total)
            self._total = 0.0


MULTIPROCESS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus_client: folder in which the processes of one server store their metrics."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_HOUR = 3600.0
_PREFIX = "tensorwright"


class Observer:
    """Observer of policy decisions; this base class ignores them.

    Methods are called in the event loop or in threads, and must neither block nor raise.
    """

    def observe_cache(self, model: str, cache: str, hits: int, rows: int) -> None:
        """A request looked `rows` up in a cache ("exact", "embedding", "semantic") and found `hits` of them."""

    def observe_cache_failure(self, model: str, cache: str) -> None:
        """A cache could not be read or written (a full disk); the request is answered without it."""

    def observe_variant(self, model: str, variant: str, rows: int) -> None:
        """`rows` rows were answered by a variant."""

    def observe_degradation(self, model: str, level: int) -> None:
        """Overload moved requests to the variant `level` steps below the best; 0 is normal operation."""

    def observe_route(self, model: str, route: str, rows: int) -> None:
        """A router or a cascade sent `rows` rows to a route."""

    def observe_drift(self, model: str, value: float, *, exceeded: bool) -> None:
        """The mean drift from the reference variant; `exceeded` if it is beyond its limit."""


NO_OBSERVER = Observer()


class Metrics(Observer):
    """Metrics of one process; `text` sums over the processes of a server. `price`: price of a core per hour, in any
    currency; the unit of costs."""

    def __init__(self, price: float = 0.0) -> None:
        """Raises MissingDependencyError without the package prometheus_client."""
        self._library = optional_module("prometheus_client", "serve", "counts requests")
        self._price = price / _HOUR
        self.registry = self._library.CollectorRegistry()
        self.requests = self._counter("requests", "Requests by HTTP status.", "model", "route", "status")
        self.latency = self._histogram("request_seconds", "Seconds from arrival to answer.", _SECONDS, "model", "route")
        self.queue = self._histogram("queue_seconds", "Seconds that a request waited for its batch.", _SECONDS, "model")
        self.compute = self._histogram("compute_seconds", "Seconds that a request's batch ran.", _SECONDS, "model")
        self.batch = self._histogram("batch_rows", "Rows of the batch that a request ran in.", _ROWS, "model")
        self.rows = self._counter("rows", "Rows that were answered.", "model")
        self.cost = self._counter("cost", "Cost of computing: core hours times the price.", "model")
        self.cost_per_1000 = self._gauge("cost_per_1000_rows", "Cost of 1,000 rows up to now.", "mostrecent", "model")
        self.cache = self._counter("cache_rows", "Rows looked up in caches.", "model", "cache", "result")
        self.cache_failures = self._counter(
            "cache_failures", "Caches that could not be read or written.", "model", "cache"
        )
        self.variants = self._counter("variant_rows", "Rows by the variant that answered.", "model", "variant")
        self.degradation = self._gauge("degradation_level", "Steps below the best variant.", "mostrecent", "model")
        self.routes = self._counter("route_rows", "Rows by the route that they took.", "model", "path")
        self.drift = self._gauge("drift", "Mean drift against the reference variant.", "mostrecent", "model")
        self.drift_exceeded = self._counter("drift_exceeded", "Measurements of drift beyond the limit.", "model")
        self.tokens = self._counter("tokens", "Tokens of language models.", "model", "kind")
        self.first_token = self._histogram("first_token_seconds", "Seconds to the first token.", _SECONDS, "model")
        self._models: dict[str, _ModelMetrics] = {}
        self._statuses: dict[tuple[str, str, int], tuple[CounterTally, HistogramTally]] = {}

    def observe_request(self, model: str, route: str, status: int, seconds: float) -> None:
        """Record an answered request."""
        counted = self._statuses.get((model, route, status))
        if counted is None:
            counted = self._statuses[model, route, status] = (
                CounterTally(self.requests.labels(model, route, str(status))),
                HistogramTally(self.latency.labels(model, route)),
            )
        counted[0].amount += 1
        counted[1].observe(seconds)

    def observe_response(self, response: Response, model: str, rows: int, threads: int = 1) -> None:
        """Record the answer of a service."""
        metrics = self._models.get(model)
        if metrics is None:
            metrics = self._models[model] = _ModelMetrics(
                HistogramTally(self.queue.labels(model)), HistogramTally(self.compute.labels(model)),
                HistogramTally(self.batch.labels(model)), CounterTally(self.rows.labels(model)),
                CounterTally(self.cost.labels(model)),
            )  # fmt: skip
        timing = response.timing
        metrics.rows.amount += rows
        if timing.batch_rows:
            metrics.queue.observe(timing.queued)
            metrics.compute.observe(timing.computed)
            metrics.batch.observe(timing.batch_rows)
            if self._price:
                share = min(rows, timing.batch_rows) / timing.batch_rows
                metrics.cost.amount += timing.computed * threads * self._price * share

    def flush(self) -> None:
        """Publish buffered values to other processes of the server and to scrapes; `text` does this too."""
        for counter, histogram in self._statuses.values():
            counter.flush()
            histogram.flush()
        for model, metrics in self._models.items():
            if self._price:
                metrics.counted_rows += metrics.rows.amount
                metrics.counted_cost += metrics.cost.amount
                if metrics.counted_rows:
                    self.cost_per_1000.labels(model).set(1000 * metrics.counted_cost / metrics.counted_rows)
            for each in (metrics.queue, metrics.compute, metrics.batch, metrics.rows, metrics.cost):
                each.flush()

    def observe_cache(self, model: str, cache: str, hits: int, rows: int) -> None:
        """See `Observer`."""
        self.cache.labels(model, cache, "hit").inc(hits)
        self.cache.labels(model, cache, "miss").inc(rows - hits)

    def observe_cache_failure(self, model: str, cache: str) -> None:
        """See `Observer`."""
        self.cache_failures.labels(model, cache).inc()

    def observe_variant(self, model: str, variant: str, rows: int) -> None:
        """See `Observer`."""
        self.variants.labels(model, variant).inc(rows)

    def observe_degradation(self, model: str, level: int) -> None:
        """See `Observer`."""
        self.degradation.labels(model).set(level)

    def observe_route(self, model: str, route: str, rows: int) -> None:
        """See `Observer`."""
        self.routes.labels(model, route).inc(rows)

    def observe_drift(self, model: str, value: float, *, exceeded: bool) -> None:
        """See `Observer`."""
        self.drift.labels(model).set(value)
        if exceeded:
            self.drift_exceeded.labels(model).inc()

    def text(self) -> bytes:
        """Return the metrics of all processes of the server in Prometheus' text format."""
        self.flush()
        registry = self.registry
        if os.environ.get(MULTIPROCESS_FOLDER):
            from prometheus_client import multiprocess

            registry = self._library.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        text: bytes = self._library.generate_latest(registry)
        return text

    def _counter(self, name: str, text: str, *labels: str) -> Any:
        return self._library.Counter(f"{_PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, mode: str, *labels: str) -> Any:
        return self._library.Gauge(f"{_PREFIX}_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Any:
        return self._library.Histogram(f"{_PREFIX}_{name}", text, labels, registry=self.registry, buckets=buckets)


@dataclass
class _ModelMetrics:
    """The metrics of one model."""

    queue: HistogramTally
    compute: HistogramTally
    batch: HistogramTally
    rows: CounterTally
    cost: CounterTally
    counted_rows: float = 0.0
    counted_cost: float = 0.0
