"""Converters by operator: registered with a decorator, discovered in `compiler.frontends.onnx.operators`.

Private domains hold operators missing from the exporter's opset.

User-defined converters: for operators of custom domains, and for ONNX operators without a built-in converter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import entry_points
from inspect import Parameter
from typing import Any

from compiler.errors import OptionError, TensorwrightError
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.structure import normalized_domain
from schedules.discovery import import_all

Converter = Callable[[NodeContext], Any]

_CONVERTERS: dict[tuple[str, str], dict[int, Converter]] = {}

TORCH_DOMAIN = "tensorwright.torch"
"""Domain of operators of PyTorch programs that ONNX lacks in the opset of torch's exporter."""


def converter(*operators: str, since: int = 1, domain: str = "") -> Callable[[Converter], Converter]:
    """Register a converter for operators of `domain` from opset version `since` up to that of the next registration.

    A converter takes the node's context and returns its outputs: a Relax expression or a value, or a sequence of
    them (None for an omitted output).
    """

    def register(function: Converter) -> Converter:
        for operator in operators:
            versions = _CONVERTERS.setdefault((normalized_domain(domain), operator), {})
            if since in versions:
                raise ValueError(f"{domain}:{operator} since {since} is registered twice")
            versions[since] = function
        return function

    return register


def bound_attributes(context: NodeContext, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return the node's attributes named by keyword-only parameters; those without a default are required."""
    return {
        parameter.name: context.required_attribute(parameter.name)
        if parameter.default is Parameter.empty
        else context.attribute(parameter.name, parameter.default)
        for parameter in parameters
        if parameter.kind is Parameter.KEYWORD_ONLY
    }


def converters_of(domain: str, operator: str) -> dict[int, Converter]:
    """Return the registered converters of an operator, by the version each begins with."""
    return dict(_CONVERTERS.get((domain, operator), {}))


def set_converter(domain: str, operator: str, since: int, function: Converter) -> None:
    """Register a converter, replacing one with the same version."""
    _CONVERTERS.setdefault((domain, operator), {})[since] = function


@cache
def discover() -> None:
    """Import every operator family."""
    import_all("compiler.frontends.onnx.operators")


def find_converter(operator: str, opset: int, domain: str = "") -> Converter | None:
    """Return the converter of an operator in that opset version, or None."""
    discover()
    versions = _CONVERTERS.get((normalized_domain(domain), operator), {})
    fitting = [since for since in versions if since <= opset]
    return versions[max(fitting)] if fitting else None


def registered_operators() -> list[tuple[str, str, int]]:
    """Return (domain, operator, since) of every converter, sorted."""
    discover()
    return sorted(
        (domain, operator, since) for (domain, operator), versions in _CONVERTERS.items() for since in versions
    )


OWN_DOMAIN = "tensorwright"


ENTRY_POINT_GROUP = "tensorwright.onnx_operators"
GUIDE = "docs/guides/operators.md"


def register_onnx_operator(operator: str, *, domain: str, since: int = 1) -> Callable[[Converter], Converter]:
    """Register the decorated function as the converter of an ONNX operator, for all later compilations of the process.

        @tensorwright.register_onnx_operator("Squareplus", domain="com.example")
        def squareplus(node):
            x = node.input(0)
            return R.divide(R.add(x, R.sqrt(R.multiply(x, x))), R.const(2.0))

    The function is given the node: `node.input(i)` is input i as a Relax expression, `node.shape(i)` and
    `node.dtype(i)` its shape and element type, `node.constant(i)` its value where that must be known,
    `node.attribute(name, default)` an attribute; `node.refuse(reason)` says why this node cannot be compiled. It
    returns the node's output as a Relax expression, or a list of its outputs.

    Args:
        operator: the operator's name.
        domain: its domain, "" for ONNX's own.
        since: the first version of the domain's operator set that the function converts; it serves later versions too.

    Raises:
        OptionError: the operator has a converter from that version on, of Tensorwright or of another function.
    """

    def register(function: Converter) -> Converter:
        discover()
        key = (normalized_domain(domain), operator)
        known = converters_of(*key).get(since)
        if known is not None and _identity(known) != _identity(function):
            raise OptionError(
                f"the operator {operator!r} of domain {domain!r} has a converter from version {since} on: "
                f"{'.'.join(_identity(known))}",
                "register yours with since= another version of the domain's operator set",
            )
        set_converter(*key, since, _guarded(function, operator, domain))
        return function

    return register


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    """Return the identity of a function across reruns of its module, or of a notebook cell."""
    return function.__module__, function.__qualname__


def _guarded(function: Converter, operator: str, domain: str) -> Converter:
    """Return the converter with exceptions other than refusals converted to an error that names the converter."""

    @functools.wraps(function)
    def convert(node: NodeContext) -> Any:
        try:
            return function(node)
        except (TensorwrightError, RefusedError, PoisonedInputError):
            raise
        except Exception as error:
            raise OptionError(
                f"the converter {'.'.join(_identity(function))} of the operator {operator!r} (domain {domain!r}) "
                f"failed at node {node.name!r}: {type(error).__name__}: {error}",
                "it is registered by register_onnx_operator; set TENSORWRIGHT_DEBUG=1, or look at __cause__, for where",
            ) from error

    return convert


@functools.cache
def load_installed() -> tuple[str, ...]:
    """Import modules that register converters, named by installed packages in the entry points of `ENTRY_POINT_GROUP`.

    Returns:
        The errors of those that cannot be imported; the others are not affected.
    """
    problems = []
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist is not None else entry.value
            problems.append(
                f"the converters of the package {package!r} ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            )
    return tuple(problems)


def unknown_operator_hint(operator: str, domain: str) -> str:
    """Return the hint for an operator without a converter."""
    return (
        f"a converter of your own can be registered: @tensorwright.register_onnx_operator({operator!r}, "
        f"domain={domain!r}), see {GUIDE}"
    )
