"""Helpers for passes that store compressed constants and expand them at load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm.ir import GenericConst, IRModule

from compiler.passes.memory.share_constants import constants_of
from compiler.passes.rewriting.expansion import Expansion, Expansions
from compiler.passes.rewriting.matching import Array, array_of

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Tensor


@dataclass(frozen=True)
class Packed:
    """The stored form of an array, and the tensor expression that expands it."""

    stored: tuple[Array, ...]
    expand: Callable[..., Tensor]


# None where it would not be smaller.
Pack = Callable[[Array], Packed | None]


def store_narrow(mod: IRModule, expansions: Expansions, pack: Pack, name: str) -> None:
    """Have the module's constants, or what they are expanded from, stored as `pack` says; `name` is the kernel's."""
    # By the identity of an array, which is its own as long as the array is kept beside it.
    packed: dict[int, tuple[Array, Packed | None]] = {}

    def look(array: Array) -> Packed | None:
        if id(array) not in packed:
            packed[id(array)] = array, pack(array)
        return packed[id(array)][1]

    for constant in constants_of(mod):
        _note(constant, expansions, look, name)


def _note(constant: GenericConst, expansions: Expansions, look: Pack, name: str) -> None:
    known = expansions.known.get(constant)
    arrays = (array_of(constant),) if known is None else known.stored
    found = [look(array) for array in arrays]
    if all(each is None for each in found):
        return
    stored: list[Array] = []
    for array, each in zip(arrays, found, strict=True):
        stored += [array] if each is None else each.stored

    def kernel(*parts: Tensor) -> Tensor:
        rest, whole = list(parts), []
        for each in found:
            own = [rest.pop(0) for _ in range(1 if each is None else len(each.stored))]
            whole.append(own[0] if each is None else each.expand(*own))
        return whole[0] if known is None else known.kernel(*whole)

    expansions.known[constant] = Expansion(tuple(stored), kernel, name if known is None else known.name)
