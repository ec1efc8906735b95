"""TVM's own lowering passes under our names, so that they are timed, dumped and verified like ours.

The order is that of `tvm.relax.backend.cpu_generic.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import GraphPass, graph_pass


def _tvm_pass(name: str, summary: str, make: Callable[[], tvm.transform.Pass], *, required: bool = True) -> GraphPass:
    @graph_pass(name, summary=summary, required=required)
    def run(mod: IRModule, context: PipelineContext) -> IRModule:
        with context.tvm_target():
            return make()(mod)

    return run


_transform = relax.transform

dispatch_sampling = _tvm_pass("dispatch-sampling", "Lower sampling operators", relax.backend.DispatchSampling)
dispatch_sort = _tvm_pass("dispatch-sort", "Lower sort, top-k and scan operators", relax.backend.DispatchSortScan)


annotate_patterns = _tvm_pass(
    "annotate-patterns", "Mark each TensorIR function as elementwise, reduction...", _transform.AnnotateTIROpPattern
)
fold_lowered_constants = _tvm_pass(
    "fold-lowered-constants", "Evaluate TensorIR calls on constants", _transform.FoldConstant, required=False
)
drop_dataflow = _tvm_pass("drop-dataflow", "Turn dataflow blocks into plain blocks", _transform.ToNonDataflow)
drop_purity = _tvm_pass("drop-purity", "Remove purity marks", _transform.RemovePurityChecking)
call_kernels = _tvm_pass(
    "call-kernels", "Turn kernel calls into calls with allocated outputs", _transform.CallTIRRewrite
)
lower_allocations = _tvm_pass(
    "lower-allocations", "Turn tensor allocations into storage and views", _transform.LowerAllocTensor
)
free_storage = _tvm_pass("free-storage", "Free each tensor after its last use", _transform.KillAfterLastUse)
lower_builtins = _tvm_pass("lower-builtins", "Lower builtins to runtime calls", _transform.LowerRuntimeBuiltin)
compute_scalars = _tvm_pass(
    "compute-scalars", "Compute scalar expressions in separate kernels", _transform.ComputePrimValue
)
lower_shapes = _tvm_pass("lower-shapes", "Compute symbolic shapes on a shape heap", _transform.VMShapeLower)
export_symbols = _tvm_pass("export-symbols", "Give public functions their symbol", _transform.AttachGlobalSymbol)
