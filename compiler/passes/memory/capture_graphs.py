"""capture-graphs: record kernels that touch only planned memory and parameters as a CUDA graph, launched as a whole.

Kernels that read an input or write a result remain separate launches: those addresses change from run to run.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import GlobalVar, IRModule
from tvm.ir.transform import PassContext

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from schedules.ir.tvm_types import Function

_INPUTS = "num_input"


@graph_pass("capture-graphs", summary="Record sequences of kernels and launch each at once")
def capture_graphs(mod: IRModule, context: PipelineContext) -> IRModule:
    """For targets with `captures_graphs`. Parameters made by `lift-parameters` count as persistent buffers."""
    if context.target is None or not context.target.captures_graphs:
        return mod
    (main,) = (variable for variable in mod.get_global_vars() if variable.name_hint == "main")
    inputs = len(mod[main].params) - len(context.parameters)
    marked = _with_function(mod, main, mod[main].with_attr(_INPUTS, inputs))
    with context.tvm_target(), PassContext(config={"relax.backend.use_cuda_graph": True}):
        captured = relax.transform.RewriteCUDAGraph()(marked)
    return _with_function(captured, main, captured[main.name_hint].without_attr(_INPUTS))


def _with_function(mod: IRModule, variable: GlobalVar, function: Function) -> IRModule:
    mod = mod.clone()
    mod.update_func(mod.get_global_var(variable.name_hint), function)
    return mod
