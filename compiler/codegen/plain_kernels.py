"""TVM's lowering of kernels that hold no blocks, which most schedules write, for processors.

About a third of the processor time of TVM's whole lowering went to passes that look for blocks, threads of a GPU and
its shared memory, above all `CompactBufferAllocation`, which bounds each access to each buffer. Rules that emit loops
allocate what they need, so there is nothing to compact.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import s_tir, tirx

from schedules.ir.expression import buffers_loaded
from schedules.ir.tir import structural_map, structural_walk
from schedules.ir.tvm_types import Expr, GlobalVar, PrimFunc, Stmt

Lowering = Callable[[tvm.IRModule], tvm.IRModule]


def with_plain_kernels(lower: Lowering) -> Lowering:
    """`lower`, but for kernels of plain loops, which only go through the passes that concern them."""
    lower_plain = _plain_passes()

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        functions = list(mod.functions_items())
        plain = {var for var, function in functions if is_plain(function)}
        if not plain:
            return lower(mod)
        results: dict[GlobalVar, PrimFunc] = {}
        for pick, each in ((True, lower_plain), (False, lower)):
            part = {var: function for var, function in functions if (var in plain) == pick}
            if part:
                results.update(each(tvm.IRModule(part, attrs=mod.attrs)).functions_items())
        return tvm.IRModule(results, attrs=mod.attrs)

    return lowered


def is_plain(function: PrimFunc) -> bool:
    """True for a PrimFunc for a processor without blocks, a root block that holds nothing but its body aside."""
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None or "target" not in function.attrs:
        return False
    return str(function.attrs["target"].kind.name) == "llvm" and holds_no_blocks(function)


def holds_no_blocks(function: PrimFunc) -> bool:
    """True if a PrimFunc has no block but a root block that holds nothing but its body."""
    blocks: list[Stmt] = []
    structural_walk(function.body, (s_tir.SBlock, blocks.append))
    return len(blocks) <= 1 and all(map(_is_bare, blocks))


def _is_bare(block: Stmt) -> bool:
    holds = (block.iter_vars, block.alloc_buffers, block.match_buffers, block.annotations)
    return block.init is None and not any(map(len, holds))


def _plain_passes() -> tvm.transform.Pass:
    """TVM's pipeline "s_tir" without what concerns blocks and GPUs, and without what LLVM does anyway, in its order.

    LLVM hoists conditions and removes loops that do nothing: its code was the same without `HoistIfThenElse` and
    `RemoveNoOp`. Common subexpressions it finds better itself: those that `CommonSubexprElim` names outside of loops
    take registers there, and code with them was 12 % larger and took 13 % longer to generate.
    """
    return tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.AnnotateIrregularLoop(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            _guard_vector_loads(),
            tirx.transform.FP8ComputeLegalize(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.FP8StorageLegalize(),
            tirx.transform.BF16StorageLegalize(),
        ]
    )


def _guard_vector_loads() -> tvm.transform.Pass:
    @tirx.transform.prim_func_pass(opt_level=0, name="GuardVectorLoads")
    def guarded(function: PrimFunc, _mod: tvm.IRModule, _context: object) -> PrimFunc:
        return function.with_body(structural_map(function.body, (tirx.Select, _guarded)))

    return guarded


def _guarded(select: Expr) -> Expr:
    """A Select that loads vectors under one condition for all lanes, as a branch.

    TVM's simplifier drops the limits of an index that hold under the condition, so the side that is not taken may read
    outside of its buffer; `RewriteUnsafeSelect` knows this for scalars alone.
    """
    condition, sides = select.condition, (select.true_value, select.false_value)
    if not isinstance(condition, tirx.Broadcast) or not any(map(buffers_loaded, sides)):
        return select
    return tirx.if_then_else(condition.value, *sides)
