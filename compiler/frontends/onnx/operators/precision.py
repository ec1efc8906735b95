"""Computation in wider types than the tensors': 16-bit floats are summed and exponentiated in float32."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext

_WIDER = {"float16": "float32", "bfloat16": "float32"}


def compute_dtype(dtype: object) -> str:
    """Return the computation type for a type's name or TVM type: float32 for 16-bit floats, otherwise the type
    itself."""
    return _WIDER.get(str(dtype), str(dtype))


def cast(context: NodeContext, tensor: relax.Expr, dtype: str) -> relax.Expr:
    """Cast the tensor to a type."""
    return tensor if str(tensor.ty.dtype) == dtype else context.emit(R.astype(tensor, dtype))


def widened(context: NodeContext, tensor: relax.Expr) -> relax.Expr:
    """Cast the tensor to the computation type."""
    return cast(context, tensor, compute_dtype(str(tensor.ty.dtype)))
