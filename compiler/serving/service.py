"""`Service`: the interface of everything that answers requests, and the base of those that wrap another service."""

from __future__ import annotations

from typing import Protocol

from compiler.artifact import TensorDescription
from compiler.serving.request import Request, Response


class Service(Protocol):
    """Answers requests for one model; wrappers of another service (a cache, a router) are services too.

    `start` is awaited once before the first request and `close` once after the last, both in the event loop of `infer`.
    `infer` may be called by many tasks at once; cancelling one does not affect the others.
    """

    @property
    def name(self) -> str:
        """The model's name for clients."""

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
        """Get ready to answer: load, verify, warm up. Raises one of Tensorwright's errors if that fails."""

    async def infer(self, request: Request) -> Response:
        """Answer one request.

        Raises:
            InputError: the inputs do not fit (HTTP 400).
            OverloadedError: the queue is full, or the request would be late (HTTP 429 or 503).
            ServiceUnavailableError: the service is closing, or its process has died (HTTP 503).
        """

    async def close(self) -> None:
        """Answer accepted requests, refuse new ones, and free resources."""


class Wrapper:
    """A service that answers with an inner one, and has its name, version, inputs and outputs."""

    def __init__(self, inner: Service) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """The model's name."""
        return self.inner.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.inner.version

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """The inputs of a request."""
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        """The outputs of a response."""
        return self.inner.outputs

    @property
    def identity(self) -> str:
        """Equal for services with equal answers; see `identity_of`."""
        return identity_of(self.inner)

    async def start(self) -> None:
        """Start the inner service."""
        await self.inner.start()

    async def infer(self, request: Request) -> Response:
        """Answer with the inner service."""
        return await self.inner.infer(request)

    async def close(self) -> None:
        """Close the inner service."""
        await self.inner.close()


def identity_of(service: Service) -> str:
    """Return an identity that distinguishes the answers of a service from those of other models, versions or weights.

    A service may have an attribute `identity`, a digest of its modules; otherwise its name and version are used.
    """
    identity = getattr(service, "identity", None)
    return identity if isinstance(identity, str) and identity else f"{service.name}/{service.version}"
