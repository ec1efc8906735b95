"""Parameters that are larger in memory than in the file: the stored form, and the kernel that expands it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compiler.passes.rewriting.matching import Array

if TYPE_CHECKING:
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
