"""Schemes by name: any module of this package may hold one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from compiler.compression.quantization.affine import Array
from compiler.compression.quantization.edit import Emit
from compiler.compression.quantization.layers import Layer
from compiler.errors import OptionError
from compiler.passes.rewriting.graph import Call, Expr
from schedules.discovery import import_all

STATIC = "static-int8"


@dataclass(frozen=True)
class SchemeOptions:
    """What the caller chose.

    Attributes:
        group: how many neighbours along the depth of a product share a scale.
        scales: the type scales are stored in, "float16" or "float32".
        rounding: of weights alone: "nearest", "gptq" (rounding one weight corrects those that follow) or "adaround".
    """

    group: int
    scales: str
    rounding: str


class RoundedLayer(Protocol):
    """A layer with its weights rounded."""

    def dequantized(self) -> Array:
        """The weights as float32, in the layer's layout."""

    def rewritten(self, layer: Layer, call: Call, emit: Emit) -> Expr:
        """What takes the place of the layer's product."""


class Scheme(Protocol):
    """How layers are rounded."""

    def refuses(self, layer: Layer) -> str | None:
        """Why the layer stays in float, None where it does not."""

    def rounded(self, layer: Layer, gram: Array | None) -> RoundedLayer:
        """The layer rounded.

        Args:
            gram: Gram matrices of the calibration data, (groups, depth, depth), if `needs_gram`.
        """

    def needs_gram(self, layer: Layer) -> bool:
        """Whether `rounded` has a use for them."""


Make = Callable[[SchemeOptions], Scheme]
_SCHEMES: dict[str, Make] = {}


def scheme(*names: str) -> Callable[[Callable[[str, SchemeOptions], Scheme]], Callable[[str, SchemeOptions], Scheme]]:
    """Register the decorated function, which makes a scheme of its name and the options."""

    def register(make: Callable[[str, SchemeOptions], Scheme]) -> Callable[[str, SchemeOptions], Scheme]:
        for name in names:
            _SCHEMES[name] = lambda options, name=name: make(name, options)  # type: ignore[misc]
        return make

    return register


@cache
def _load() -> None:
    import_all("compiler.compression.quantization.schemes")


def scheme_names() -> tuple[str, ...]:
    """All schemes, the static one first."""
    _load()
    return (STATIC, *sorted(_SCHEMES))


def make_scheme(name: str, options: SchemeOptions) -> Scheme:
    """The scheme of that name. Raises OptionError when there is none."""
    _load()
    if name not in _SCHEMES:
        raise OptionError(f"scheme={name!r}", f"use one of {', '.join(scheme_names())}")
    return _SCHEMES[name](options)
