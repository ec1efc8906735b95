"""normalize: every function in normal form, with pure code in dataflow blocks and no trivial bindings."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass


@graph_pass("normalize", summary="Bring functions into normal form: dataflow blocks, no trivial bindings")
def normalize(mod: IRModule, context: PipelineContext) -> IRModule:
    """Operands are variables, constants or shapes; pure calls are in dataflow blocks."""
    transform = relax.transform
    return tvm.transform.Sequential(
        [transform.Normalize(), transform.ConvertToDataflow(1), transform.CanonicalizeBindings()]
    )(mod)
