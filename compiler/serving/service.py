"""`Service`: the interface of everything that answers requests."""

from __future__ import annotations

from typing import Protocol

from compiler.artifact import TensorDescription
from compiler.serving.request import Request, Response


class Service(Protocol):
    """Answers requests for one model; what wraps another service (a cache, a router) is one as well.

    `start` is awaited once before the first request and `close` once after the last; both run in the event loop that
    `infer` runs in. `infer` may be called by many tasks at once; a task that is cancelled leaves the others unharmed.
    """

    @property
    def name(self) -> str:
        """The model's name, as clients address it."""

    @property
    def version(self) -> str:
        """The model's version, a decimal number for Triton's clients."""

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes (symbolic dimensions by name) and element types of a request's inputs."""

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """Names, shapes and element types of an answer's outputs."""

    async def start(self) -> None:
        """Get ready to answer: load, verify, warm up. Raises an error of the project where that fails."""

    async def infer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            InputError: the inputs do not fit (HTTP 400).
            OverloadedError: there is no room for the request now, or it would be late (HTTP 429 or 503).
            ServiceUnavailableError: the service is closing, or what computes has died (HTTP 503).
        """

    async def close(self) -> None:
        """Answer what was accepted, refuse what comes, and free what is held."""
