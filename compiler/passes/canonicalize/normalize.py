"""normalize: bring functions into normal form, with pure code in dataflow blocks and no trivial bindings.

track-nodes: record which model nodes each variable computes; the module is unchanged.
"""

from __future__ import annotations

from collections.abc import Hashable

import tvm
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from schedules.ir.tir import structural_map, structural_walk
from schedules.ir.tvm_types import Expr, Var


@graph_pass("normalize", summary="Bring functions into normal form: dataflow blocks, no trivial bindings")
def normalize(mod: IRModule, context: PipelineContext) -> IRModule:
    """Operands are variables, constants or shapes; pure calls are in dataflow blocks.

    TVM replaces a size named by a match_cast by its defining expression in what follows, but not in the match_cast
    itself, and types inferred later disagree. So all names of known sizes are replaced first.
    """
    return _normalized(_without_names(mod))


def _normalized(mod: IRModule) -> IRModule:
    transform = relax.transform
    return tvm.transform.Sequential(
        [transform.Normalize(), transform.ConvertToDataflow(1), transform.CanonicalizeBindings()]
    )(mod)


def _without_names(mod: IRModule) -> IRModule:
    """Replace symbolic names of known sizes by the sizes."""
    functions = {
        var: _computed(function) if isinstance(function, relax.Function) else function
        for var, function in mod.functions_items()
    }
    return IRModule(functions, attrs=mod.attrs)


def _computed(function: relax.Function) -> relax.Function:
    sizes: dict[Hashable, Expr] = {}

    def size_of(variable: Var) -> Expr:
        return sizes.get(variable, variable)

    def see(binding: relax.MatchCast) -> None:
        known, named = getattr(binding.value.ty, "shape", None), getattr(binding.ty, "shape", None)
        if not isinstance(known, relax.ShapeExpr) or not isinstance(named, relax.ShapeExpr):
            return
        for size, name in zip(known.values, named.values, strict=True):
            if isinstance(name, tvm.ir.Var) and name not in sizes and not name.same_as(size):
                sizes[name] = structural_map(size, (tvm.ir.Var, size_of))

    structural_walk(function, [(relax.MatchCast, see)])
    return function if not sizes else structural_map(function, (tvm.ir.Var, size_of))


@graph_pass("track-nodes", summary="Record which model nodes each binding computes")
def track_nodes(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after phases that remove or replace bindings; reports and profiles name nodes by it."""
    context.tracker.follow(mod)
    return mod
