"""Parameters that are larger in memory than in the file: their stored form, the kernel that expands it, and 16-bit
storage of float32 constants that are exact in 16 bits."""

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
    """Expansion of one constant from smaller arrays.

    Attributes:
        stored: the arrays that the module's file holds instead.
        kernel: a tensor expression that computes the constant from them.
        free: axes of each stored array that the kernel is generic in: it is built once for all their sizes.
    """

    stored: tuple[Array, ...]
    kernel: Callable[..., Tensor]
    name: str
    free: tuple[tuple[int, ...], ...] = ()


@dataclass
class Expansions:
    """Constants of one compilation that can be expanded when the module is loaded.

    Attributes:
        known: the expansion of each such constant; filled by the passes that create them.
        chosen: constants in use, as found by `expand-at-load`, in the order that `EXPAND_ENTRY` returns them.
        stored: the arguments of that function, in order, by name.
        filters: by filter, the constant transformed for Winograd and its stored form.
        repacked: for filters in other packings, the filter, and the kernel that packs them from the form stored for
            Winograd.
    """

    known: dict[Expr, Expansion] = field(default_factory=dict)
    chosen: list[Expr] = field(default_factory=list)
    stored: dict[str, Array] = field(default_factory=dict)
    filters: dict[Expr, tuple[Expr, Array]] = field(default_factory=dict)
    repacked: dict[Expr, tuple[Expr, Callable[..., Tensor]]] = field(default_factory=dict)


# Fewer bytes are not worth a kernel at load time.
MIN_ELEMENTS = 4096
_PROBED = 256


def exact_half(values: Array) -> Array | None:
    """Return the numbers as float16, or as uint16 bits of bfloat16, if exact; otherwise None."""
    if values.dtype != np.float32 or values.size < MIN_ELEMENTS:
        return None
    probe = values.reshape(-1)[:: max(1, values.size // _PROBED)]
    for narrow, wide in ((_float16, _of_float16), (_bfloat16, _of_bfloat16)):
        if np.array_equal(wide(narrow(probe)), probe):
            half = narrow(values)
            if np.array_equal(wide(half), values):
                return half
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
    """Return the expansion of a constant from half its bytes, if exact."""
    stored = exact_half(values)
    return None if stored is None else Expansion((stored,), _widened, "widen")


def with_half_storage(expansion: Expansion) -> Expansion:
    """Return the expansion with its stored arrays in 16 bits if exact."""
    halves = [exact_half(each) for each in expansion.stored]
    if all(each is None for each in halves):
        return expansion

    def kernel(*stored: Tensor) -> Tensor:
        wide = [each if half is None else _widened(each) for each, half in zip(stored, halves, strict=True)]
        return expansion.kernel(*wide)

    arrays = tuple(each if half is None else half for each, half in zip(expansion.stored, halves, strict=True))
    return replace(expansion, stored=arrays, kernel=kernel)
