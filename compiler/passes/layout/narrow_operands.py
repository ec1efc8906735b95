"""narrow-operands: multiply in 16 bits on targets with 16-bit matrix units, by the option "precision".

    conv(x, w)    => conv(narrow(x), narrow(w)), sums in float32
    matmul(x, w)  => matmul(narrow(x), narrow(w)), w constant

where narrow rounds float32 to bfloat16 ("bf16") or float16. CPUs round operands while packing them instead.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from tvm import relax
from tvm.ir import IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable
from compiler.passes.rewriting.matching import as_constant, constant_array, dtype_of, rank_of

_TYPES = {"bf16": "bfloat16", "float16": "float16"}
_NUMPY: dict[str, Any] = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


@graph_pass("narrow-operands", summary="Round operands of matmuls and convolutions to 16 bits on request")
def narrow_operands(mod: IRModule, context: PipelineContext) -> IRModule:
    """See the equations in the module docstring; for targets with `narrows_operands`. Reads "precision"."""
    dtype = _TYPES.get(context.options.precision)
    if dtype is None or context.target is None or not context.target.narrows_operands:
        return mod
    return _rules(dtype).apply(mod)


def _rules(dtype: str) -> RuleTable:
    rules = RuleTable()

    def narrowed(graph: Graph, call: Call) -> tuple[Expr, Expr] | None:
        """Return the rounded operands of a float32 matmul or convolution with constant weights."""
        data, weight = call.args[0], constant_array(graph, call.args[1])
        if weight is None or weight.dtype != np.float32 or not dtype_of(call) == dtype_of(data) == "float32":
            return None
        with np.errstate(over="ignore"):
            return graph.emit(relax.op.astype(data, dtype)), as_constant(weight.astype(_NUMPY[dtype]))

    @rules.on("relax.nn.conv1d", "relax.nn.conv2d", "relax.nn.conv3d")
    def convolution(graph: Graph, call: Call) -> Expr | None:
        operands = narrowed(graph, call) if int(call.attrs.groups) == 1 else None
        if operands is None:
            return None
        names = ("strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "out_layout")
        attributes = {name: getattr(call.attrs, name) for name in names}
        function = getattr(relax.op.nn, str(call.op.name).rpartition(".")[2])
        return function(*operands, **attributes, out_dtype="float32")

    @rules.on("relax.matmul")
    def matmul(graph: Graph, call: Call) -> Expr | None:
        operands = narrowed(graph, call) if rank_of(call.args[1]) == 2 else None
        return None if operands is None else relax.op.matmul(*operands, out_dtype="float32")

    return rules
