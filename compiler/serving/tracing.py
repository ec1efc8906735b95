"""Traces of requests: kernels of a run as Chrome trace events, and spans for OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from compiler.errors import OptionError
from compiler.runtime import Module
from compiler.serving.request import Array, Response
from compiler.support.optional import optional_module

_NANOSECONDS = 1e9
_RUNS = 1


def kernel_events(module: Module, inputs: Mapping[str, Array]) -> tuple[Mapping[str, Any], ...]:
    """Profile a run on these inputs; return Chrome trace events (times in microseconds). Takes several runs."""
    from compiler.profiling.profile import profile
    from compiler.profiling.save import chrome_trace

    events: Sequence[Mapping[str, Any]] = chrome_trace(profile(module, inputs, runs=_RUNS))["traceEvents"]
    return tuple(events)


class Tracer:
    """Sends a span for each inference to an OpenTelemetry collector."""

    def __init__(self, endpoint: str | None = None, provider: Any = None) -> None:
        """Create a tracer.

        Args:
            endpoint: URL of a collector that accepts OTLP over HTTP, such as http://localhost:4318/v1/traces.
            provider: an OpenTelemetry `TracerProvider` to use instead of the endpoint.

        Raises:
            OptionError: the endpoint is not a URL.
            MissingDependencyError: a package of the extra `trace` is missing.
        """
        if provider is None:
            _check_url(endpoint or "")
        purpose = "sends traces"
        self._propagation = optional_module("opentelemetry.propagate", "trace", purpose)
        self._api = optional_module("opentelemetry.trace", "trace", purpose)
        self._provider = _provider(endpoint, purpose) if provider is None else provider
        self._tracer = self._provider.get_tracer("tensorwright")

    def record(self, headers: Mapping[bytes, bytes], model: str, arrival: float, response: Response) -> None:
        """Record an answered request.

        Args:
            headers: headers of the request; `traceparent` names its parent span.
            arrival: seconds of `time.monotonic()`.
        """
        to_wall = time.time() - time.monotonic()
        begin = arrival + to_wall
        timing = response.timing
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        attributes: dict[str, Any] = {
            "tensorwright.model": model,
            "tensorwright.served_by": response.served_by,
            "tensorwright.batch_rows": timing.batch_rows,
            "tensorwright.cached": response.cached or "",
            **{f"tensorwright.{name}": value for name, value in response.notes.items()},
        }
        parent = self._propagation.extract(carrier)
        span = self._tracer.start_span("inference", parent, start_time=_ns(begin), attributes=attributes)
        inside = self._api.set_span_in_context(span)
        if timing.batch_rows:
            ran = begin + timing.queued
            self._child(inside, "queue", begin, ran, {})
            run = self._child(inside, "run", ran, ran + timing.computed, {})
            for event in response.events:
                if event.get("ph") == "X":
                    start = ran + event["ts"] * 1e-6
                    arguments = {name: str(value) for name, value in event.get("args", {}).items()}
                    self._child(run, event["name"], start, start + event["dur"] * 1e-6, arguments)
        span.end(_ns(time.time()))

    def _child(self, inside: object, name: str, begin: float, end: float, attributes: Mapping[str, object]) -> Any:
        span = self._tracer.start_span(name, inside, start_time=_ns(begin), attributes=attributes)
        span.end(_ns(end))
        return self._api.set_span_in_context(span)

    def close(self) -> None:
        """Send pending spans."""
        self._provider.shutdown()


def _check_url(endpoint: str) -> None:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OptionError(
            f"{endpoint!r} is not the URL of a collector", "give one such as http://localhost:4318/v1/traces"
        )


def _provider(endpoint: str | None, purpose: str) -> Any:
    sdk = optional_module("opentelemetry.sdk.trace", "trace", purpose)
    processors = optional_module("opentelemetry.sdk.trace.export", "trace", purpose)
    exporters = optional_module("opentelemetry.exporter.otlp.proto.http.trace_exporter", "trace", purpose)
    resources = optional_module("opentelemetry.sdk.resources", "trace", purpose)
    provider = sdk.TracerProvider(resource=resources.Resource.create({"service.name": "tensorwright"}))
    provider.add_span_processor(processors.BatchSpanProcessor(exporters.OTLPSpanExporter(endpoint=endpoint)))
    return provider


def _ns(seconds: float) -> int:
    return int(seconds * _NANOSECONDS)
