"""The engine's own lowering passes under our naming, so that they are timed, dumped and verified like ours.

The order is that of `tvm.relax.backend.cpu_generic.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.tvm_target import tvm_target


def _register(name: str, summary: str, make: Callable[[], Any], *, required: bool = True) -> None:
    @graph_pass(name, summary=summary, required=required)
    def run(mod: IRModule, context: PipelineContext) -> IRModule:
        with tvm_target(context):
            return make()(mod)


_transform = relax.transform

_register("dispatch-sampling", "Lower sampling operators", relax.backend.DispatchSampling)
_register("dispatch-sort", "Lower sort, top-k and scan operators", relax.backend.DispatchSortScan)


_register(
    "annotate-patterns",
    "Mark each TensorIR function as elementwise, reduction...",
    _transform.AnnotateTIROpPattern,
)
_register("fold-lowered-constants", "Evaluate TensorIR calls on constants", _transform.FoldConstant, required=False)
_register("group-operators", "Group operators into kernels", _transform.FuseOps, required=False)
_register("drop-dataflow", "Turn dataflow blocks into plain blocks", _transform.ToNonDataflow)
_register("drop-purity", "Remove purity marks", _transform.RemovePurityChecking)
_register("call-kernels", "Turn kernel calls into calls with allocated outputs", _transform.CallTIRRewrite)
_register("lower-allocations", "Turn tensor allocations into storage and views", _transform.LowerAllocTensor)
_register("free-storage", "Free each tensor after its last use", _transform.KillAfterLastUse)
_register("lower-builtins", "Lower builtins to runtime calls", _transform.LowerRuntimeBuiltin)
_register("compute-scalars", "Compute scalar expressions in kernels of their own", _transform.ComputePrimValue)
_register("lower-shapes", "Compute symbolic shapes on a shape heap", _transform.VMShapeLower)
_register("export-symbols", "Give public functions their symbol", _transform.AttachGlobalSymbol)
