"""Converters by operator: registered with a decorator, discovered in `compiler.frontends.onnx.operators`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from compiler.frontends.onnx.structure import normalized_domain
from schedules.discovery import import_all

if TYPE_CHECKING:
    from compiler.frontends.onnx.context import NodeContext

    Converter = Callable[[NodeContext], Any]

_CONVERTERS: dict[tuple[str, str], dict[int, Converter]] = {}

TORCH_DOMAIN = "tensorwright.torch"
"""Of operators that PyTorch programs become, and that ONNX does not have in the opset of torch's exporter."""


def converter(*operators: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter for operators of `domain` from opset version `since` on, until a later registration.

    A converter takes the node's context and returns its outputs: a Relax expression or a value, or a sequence of
    them (None for an output it leaves out).
    """

    def register(function: Converter) -> Converter:
        for operator in operators:
            versions = _CONVERTERS.setdefault((normalized_domain(domain), operator), {})
            if since in versions:
                raise ValueError(f"{domain}:{operator} since {since} is registered twice")
            versions[since] = function
        return function

    return register


def converters_of(domain: str, operator: str) -> dict[int, Converter]:
    """The registered converters of an operator by the version that each begins with."""
    return dict(_CONVERTERS.get((domain, operator), {}))


def set_converter(domain: str, operator: str, since: int, function: Converter) -> None:
    """Register a converter in place of the one with the same version, where there is one."""
    _CONVERTERS.setdefault((domain, operator), {})[since] = function


@cache
def discover() -> None:
    """Import every operator family."""
    import_all("compiler.frontends.onnx.operators")


def find_converter(operator: str, opset: int, domain: str = "") -> Converter | None:
    """The converter of an operator in that opset version, or None."""
    discover()
    versions = _CONVERTERS.get((normalized_domain(domain), operator), {})
    fitting = [since for since in versions if since <= opset]
    return versions[max(fitting)] if fitting else None


def registered_operators() -> list[tuple[str, str, int]]:
    """(domain, operator, since) of every converter, sorted."""
    discover()
    return sorted(
        (domain, operator, since) for (domain, operator), versions in _CONVERTERS.items() for since in versions
    )
