"""Products of rows with one matrix per group, as in mixtures of experts: one operator, so that each row is multiplied
with the matrix of its own group alone."""

from __future__ import annotations

from functools import cache
from typing import Any

from compiler.frontends.onnx.own_domain import OWN_DOMAIN

OPERATORS = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


def grouped_product(
    rows: Any, weights: Any, offs: Any = None, bias: Any = None, out_dtype: int | None = None, **_: object
) -> Any:
    """Rows (n, depth), weights (groups, depth, columns); `offs` says where in the rows each group ends."""
    if offs is None or bias is not None or out_dtype is not None or len(rows.shape) != 2 or len(weights.shape) != 3:
        raise ValueError("grouped products are supported of rows (n, depth) with matrices (groups, depth, columns)")
    return _operator()(rows, weights, offs)


@cache
def _operator() -> Any:
    import onnx.defs
    from onnxscript.values import Op, Opset

    parameter = onnx.defs.OpSchema.FormalParameter
    floats, integers = [f"tensor({name})" for name in ("float", "float16", "bfloat16", "double")], "tensor(int32)"
    schema = onnx.defs.OpSchema(
        "GroupedMatMul",
        OWN_DOMAIN,
        1,
        inputs=[parameter("rows", "T"), parameter("weights", "T"), parameter("ends", "I")],
        outputs=[parameter("results", "T")],
        type_constraints=[("T", floats, ""), ("I", [integers, "tensor(int64)"], "")],
        attributes=[],
    )
    return Op(Opset(OWN_DOMAIN, 1), "GroupedMatMul", schema)
