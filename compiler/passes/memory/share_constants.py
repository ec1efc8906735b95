"""share-constants: equal constants become one object, so that tensors derived from them are computed and stored
once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.constant_pool import ConstantPool
from compiler.passes.rewriting.expansion import Expansion, Expansions
from compiler.passes.rewriting.graph import update_functions
from compiler.passes.rewriting.substitution import leaves, replace_leaves

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Function, GlobalVar


@graph_pass("share-constants", summary="Store equal constants once")
def share_constants(mod: IRModule, context: PipelineContext) -> IRModule:
    """Replaces each constant with dimensions by the first one with the same bits, type and shape.

    Of equal constants the one with a smaller form (`context.expansions`) is kept. A filter that is packed for
    Winograd's method in one place and for the direct convolution in another is stored for the first alone.
    """
    kept = _kept(mod, context.expansions)
    changed = {}
    for variable, function in _functions(mod):
        body = replace_leaves(function.body, lambda leaf: kept.get(leaf, leaf))
        if body is not function.body:
            changed[variable] = relax.Function(
                function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span
            )
    _store_filters_once(set(kept.values()), context.expansions)
    return update_functions(mod, changed) if changed else mod


def constants_of(mod: IRModule) -> dict[Expr, None]:
    """The constants that functions of the module read, each object once, in order."""
    return dict.fromkeys(
        leaf for _, function in _functions(mod) for leaf in leaves(function.body) if isinstance(leaf, GenericConst)
    )


def _functions(mod: IRModule) -> Iterator[tuple[GlobalVar, Function]]:
    for variable, function in mod.functions_items():
        if isinstance(function, relax.Function):
            yield variable, function


def _kept(mod: IRModule, expansions: Expansions) -> dict[Expr, Expr]:
    """For each constant with dimensions, the equal one to use."""
    pool = ConstantPool()
    indices = {constant: index for constant in constants_of(mod) if (index := pool.index(constant)) is not None}
    chosen: dict[int, Expr] = {}
    for known in (expansions.known, expansions.repacked, indices):
        for constant, index in indices.items():
            if constant in known:
                chosen.setdefault(index, constant)
    return {constant: chosen[index] for constant, index in indices.items()}


def _store_filters_once(used: set[Expr], expansions: Expansions) -> None:
    """Have direct convolutions' filters come out of those that are stored for Winograd's method anyway."""
    stored = {key: array for key, (constant, array) in expansions.filters.items() if constant in used}
    for constant, (key, kernel) in expansions.repacked.items():
        if constant in used and constant not in expansions.known and key in stored:
            expansions.known[constant] = Expansion((stored[key],), kernel, "repack_filter")
