"""`create_app`: the complete application for a set of models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compiler.serving.app.application import Application, Routes
from compiler.serving.app.authentication import ApiKeys
from compiler.serving.app.completions import Completions
from compiler.serving.app.embeddings import Embeddings
from compiler.serving.app.http import Call, Reply, check_method
from compiler.serving.app.open_inference import OpenInference
from compiler.serving.app.openai_models import OpenAIModels
from compiler.serving.app.predictions import Predictions
from compiler.serving.app.rerank import Rerank
from compiler.serving.app.transcriptions import Transcriptions
from compiler.serving.configuration import ModelOptions
from compiler.serving.limits import Limits
from compiler.serving.metrics import CONTENT_TYPE, Metrics
from compiler.serving.repository import Control, LocalControl, Repository
from compiler.serving.tracing import Tracer


@dataclass(frozen=True, kw_only=True)
class AppOptions:
    """Options of an application: access, limits, metrics and traces.

    Attributes:
        keys: API keys of clients; without keys, anyone who can reach the server is answered.
        local_only: without keys, answer only requests from this machine to its own name.
        price: price of a core per hour, for cost metrics.
        traces: clients may ask for a profile of the kernels, which takes several runs.
        tracer: records each inference.
    """

    keys: ApiKeys = field(default_factory=ApiKeys)
    limits: Limits = field(default_factory=Limits)
    local_only: bool = True
    price: float = 0.0
    traces: bool = False
    tracer: Tracer | None = None


def create_app(
    models: Sequence[ModelOptions],
    options: AppOptions | None = None,
    *,
    control: Callable[[Repository], Control] = LocalControl,
    on_demand: Callable[[Repository], Routes] | None = None,
) -> Application:
    """Create an ASGI application that serves models and loads them at startup. Raises MissingDependencyError if a
    package of the extra `serve` is missing.

    Args:
        control: loads and unloads models, if several processes are involved.
        on_demand: creates routes that come first, and load the requested model; then none is loaded at
            startup.
    """
    options = options or AppOptions()
    metrics = Metrics(options.price)
    repository = Repository(models, metrics, on_demand=on_demand is not None)
    routes: tuple[Routes, ...] = (
        *(() if on_demand is None else (on_demand(repository),)),
        OpenInference(repository, control(repository), metrics, traces=options.traces, tracer=options.tracer),
        Predictions(repository, metrics),
        Embeddings(repository, metrics),
        Rerank(repository, metrics),
        Completions(repository, metrics),
        Transcriptions(repository, metrics),
        OpenAIModels(repository),
        Observability(metrics),
    )
    return Application(
        repository, routes, metrics, keys=options.keys, limits=options.limits, local_only=options.local_only
    )


_PAGE = Path(__file__).with_name("status.html")


class Observability:
    """Endpoints for operators: metrics and the status page."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def answer(self, call: Call) -> Reply | None:
        """See `Routes`."""
        if call.path == "/metrics":
            check_method(call, "GET")
            call.route = "metrics"
            return Reply(self._metrics.text(), headers=((b"content-type", CONTENT_TYPE.encode()),))
        if call.path in ("/", "/status"):
            check_method(call, "GET")
            call.route = "status"
            headers = (
                (b"content-type", b"text/html; charset=utf-8"),
                (
                    b"content-security-policy",
                    b"default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
                ),
                (b"x-content-type-options", b"nosniff"),
            )
            return Reply(_PAGE.read_bytes(), headers=headers)
        return None
