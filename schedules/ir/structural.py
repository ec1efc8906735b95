"""Walks and maps of TVM's graphs that start in a quarter of the time of `tvm_ffi`'s.

A compilation makes thousands of small ones, and most of their time was the lookup of their callbacks' types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import schedules.ir.load_tvm  # noqa: F401

# isort: split
from tvm_ffi import structural

Callback: TypeAlias = tuple[Any, Callable[[Any], Any]]
"""One or several classes, and the callback for each object of them."""
_ORDERS = {"pre": int(structural.WalkOrder.PREORDER), "post": int(structural.WalkOrder.POSTORDER)}


def structural_walk(
    root: Any, callbacks: Callback | Sequence[Callback], *, order: Literal["pre", "post"] = "post"
) -> None:
    """Call the first callback whose class matches for each object below `root`, like `tvm_ffi.structural_walk`."""
    structural._ffi_api.StructuralWalk(root, _entries(callbacks), [], _ORDERS[order])


def structural_map(
    root: Any, callbacks: Callback | Sequence[Callback], *, order: Literal["pre", "post"] = "post"
) -> Any:
    """`root` with each object replaced by its callback's result, like `tvm_ffi.structural_map`."""
    return structural._ffi_api.StructuralMap(root, _entries(callbacks), [], _ORDERS[order])


def _entries(callbacks: Callback | Sequence[Callback]) -> list[tuple[int, Callable[[Any], Any]]]:
    several: Sequence[Any] = [callbacks] if isinstance(callbacks, tuple) and callable(callbacks[-1]) else callbacks
    return [
        (_type_index(kind), callback)
        for kinds, callback in several
        for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
    ]


@cache
def _type_index(kind: Any) -> int:
    return structural._callback_type_to_type_index(kind, api_name="structural walk")
