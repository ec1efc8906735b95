"""legalize-operators: each Relax operator becomes a TensorIR function.

TVM's pass, with our lowerings in place of some of TVM's, and the target's in place of both.
"""

from __future__ import annotations

from tvm import relax
from tvm.ir import IRModule

from compiler.passes.canonicalize.spell_sizes import operators_without_shapes, spell_sizes
from compiler.passes.context import PipelineContext
from compiler.passes.fuse.legalizations import LEGALIZATIONS
from compiler.passes.registry import graph_pass


@graph_pass("legalize-operators", summary="Lower each operator to a TensorIR function", required=True)
def legalize_operators(mod: IRModule, context: PipelineContext) -> IRModule:
    """Every operator with a lowering as a call of a TensorIR function.

    A kernel's result has the sizes of its expression, so an operator after it may lose its shape, and is left as it
    is: its sizes are spelled again, and it is lowered in the next turn. Each turn lowers at least one.
    """
    of_target = {} if context.target is None else context.target.legalizations()
    lower = relax.transform.LegalizeOps({**LEGALIZATIONS, **of_target})
    with context.tvm_target():
        mod = lower(mod)
        lost = operators_without_shapes(mod)
        while lost:
            mod = lower(spell_sizes(mod, context))
            before, lost = lost, operators_without_shapes(mod)
            if lost >= before:
                break
    return mod
