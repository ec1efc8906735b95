"""Operators by name, discovered automatically: each module of this package registers functions.

    @operator("relax.nn.conv2d")
    def convolution(view: View, call: Call, result: Result) -> Step: ...

The function returns the step that computes `result`, or raises `Unsupported` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeAlias

from schedules.discovery import import_all
from schedules.ir.tvm_types import Call
from targets.ethos_u.steps import Result, Step
from targets.ethos_u.view import View

Match: TypeAlias = "Callable[[View, Call, Result], Step]"
_registered: dict[str, Match] = {}
_biased: set[str] = set()


def operator(*names: str, bias: bool = False) -> Callable[[Match], Match]:
    """Register the decorated function; with `bias` it also handles a constant added to the operator's result."""

    def register(match: Match) -> Match:
        for name in names:
            _registered[name] = match
            if bias:
                _biased.add(name)
        return match

    return register


@cache
def _load() -> None:
    import_all("targets.ethos_u.operators")


def names() -> frozenset[str]:
    """Names of all registered operators, and of the kernels that become tables."""
    _load()
    from targets.ethos_u.operators.table import KERNELS

    return KERNELS | frozenset(_registered)


def matcher(name: str) -> Match | None:
    """The function of an operator."""
    _load()
    return _registered.get(name)


def takes_bias(name: str) -> bool:
    """True if a constant added to the operator's result is part of it."""
    _load()
    return name in _biased
