"""Parameters that are larger in memory than in the file: the stored form, the kernel that expands it, and storage of
float32 constants that 16 bits hold exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.passes.rewriting.matching import Array
from schedules.ir.expression import number

from tvm import te  # isort: skip
from schedules.ir.tvm_types import Expr, Tensor


@dataclass(frozen=True, eq=False)
class Expansion:
    """Expansion of one constant from smaller ones.

    Attributes:
        stored: what the module's file holds in its place.
        kernel: a tensor expression of them that gives the constant.
        free: axes of each stored array whose sizes the kernel does not depend on: it is built once for all sizes.
    """

    stored: tuple[Array, ...]
    kernel: Callable[..., Tensor]
    name: str
    free: tuple[tuple[int, ...], ...] = ()


@dataclass
class Expansions:
    """The constants of one compilation that can be expanded when the module is loaded.

    Attributes:
        known: how, for each such constant; filled by the passes that make them.
        chosen: those that `expand-at-load` found in use, in the order in which the function `EXPAND_ENTRY` gives them.
        stored: what that function takes, in order, by name.
        filters: by filter, the constant transformed for Winograd's method and what is stored for it.
        repacked: for filters packed otherwise, the filter, and the kernel that packs them from what is stored for
            Winograd's method.
    """

    known: dict[Expr, Expansion] = field(default_factory=dict)
    chosen: list[Expr] = field(default_factory=list)
    stored: dict[str, Array] = field(default_factory=dict)
    filters: dict[Expr, tuple[Expr, Array]] = field(default_factory=dict)
    repacked: dict[Expr, tuple[Expr, Callable[..., Tensor]]] = field(default_factory=dict)


# Fewer bytes are not worth a kernel that runs when the module is loaded.
LEAST_ELEMENTS = 4096
_PROBED = 256


def exact_half(values: Array) -> Array | None:
    """The numbers as float16, or as the uint16 that hold bfloat16, where that changes none; else None."""
    if values.dtype != np.float32 or values.size < LEAST_ELEMENTS:
        return None
    probe = values.reshape(-1)[:: max(1, values.size // _PROBED)]
    for narrow, wide in ((_float16, _of_float16), (_bfloat16, _of_bfloat16)):
        if np.array_equal(wide(narrow(probe)), probe):
            found = narrow(values)
            if np.array_equal(wide(found), values):
                return found
    return None


def _float16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _of_float16(values: Array) -> Array:
    return values.astype(np.float32)


def _bfloat16(values: Array) -> Array:
    return (np.ascontiguousarray(values).view(np.uint32) >> 16).astype(np.uint16)


def _of_bfloat16(values: Array) -> Array:
    return (values.astype(np.uint32) << 16).view(np.float32)


def _widened(stored: Tensor) -> Tensor:
    return te.compute(stored.shape, lambda *at: number(stored(*at), "float32"), name="widened")


def widening(values: Array) -> Expansion | None:
    """Expansion of a constant from half its bytes, where it has one."""
    stored = exact_half(values)
    return None if stored is None else Expansion((stored,), _widened, "widen")


def with_half_storage(expansion: Expansion) -> Expansion:
    """The expansion with what 16 bits hold of what it stores stored so."""
    halves = [exact_half(each) for each in expansion.stored]
    if all(each is None for each in halves):
        return expansion

    def kernel(*stored: Tensor) -> Tensor:
        wide = [each if half is None else _widened(each) for each, half in zip(stored, halves, strict=True)]
        return expansion.kernel(*wide)

    arrays = tuple(each if half is None else half for each, half in zip(expansion.stored, halves, strict=True))
    return replace(expansion, stored=arrays, kernel=kernel)
