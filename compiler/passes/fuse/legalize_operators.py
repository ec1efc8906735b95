"""legalize-operators: each Relax operator becomes a TensorIR function.

TVM's pass, with our lowerings in place of some of TVM's, and the target's in place of both.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.fuse import (
    legalizations,
    legalize_concatenations,
    legalize_maxima,
    legalize_norms,
    legalize_reshapes,
)
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.tvm_target import tvm_target


@graph_pass("legalize-operators", summary="Lower each operator to a TensorIR function", required=True)
def legalize_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Every operator with a lowering as a call of a TensorIR function."""
    modules = (legalizations, legalize_concatenations, legalize_maxima, legalize_norms, legalize_reshapes)
    own = {name: rule for module in modules for name, rule in module.LEGALIZATIONS.items()}
    of_target = {} if context.target is None else context.target.legalizations()
    with tvm_target(context):
        return relax.transform.LegalizeOps({**own, **of_target})(mod)
