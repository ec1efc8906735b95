"""A base class of services that wrap another service."""

from __future__ import annotations

from compiler.artifact import TensorDescription
from compiler.serving.request import Request, Response
from compiler.serving.service import Service


class Wrapper:
    """A service that answers by another one, whose name, version, inputs and outputs it has."""

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
        """Equal for services that give equal answers; see `identity_of`."""
        return identity_of(self.inner)

    async def start(self) -> None:
        """Start the inner service."""
        await self.inner.start()

    async def infer(self, request: Request) -> Response:
        """Answer by the inner service."""
        return await self.inner.infer(request)

    async def close(self) -> None:
        """Close the inner service."""
        await self.inner.close()


def identity_of(service: Service) -> str:
    """Identity that tells the answers of a service from those of another model, version or set of weights.

    A service may have an attribute `identity`, a digest of what computes its answers; without one, its name and version
    have to do.
    """
    identity = getattr(service, "identity", None)
    return identity if isinstance(identity, str) and identity else f"{service.name}/{service.version}"
