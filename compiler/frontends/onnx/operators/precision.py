"""Computing in a wider type than the tensors have: 16-bit floats are summed and exponentiated as float32."""

from __future__ import annotations

from tvm import relax
from tvm.relax import op as R

from compiler.frontends.onnx.context import NodeContext

_WIDER = {"float16": "float32", "bfloat16": "float32"}


def compute_dtype(dtype: object) -> str:
    """The type to compute in, of a type's name or TVM's own: float32 for 16-bit floats, else the type itself."""
    return _WIDER.get(str(dtype), str(dtype))


def cast(context: NodeContext, tensor: relax.Expr, dtype: str) -> relax.Expr:
    """The tensor in a type."""
    return tensor if str(tensor.ty.dtype) == dtype else context.emit(R.astype(tensor, dtype))


def widened(context: NodeContext, tensor: relax.Expr) -> relax.Expr:
    """The tensor in the type to compute in."""
    return cast(context, tensor, compute_dtype(str(tensor.ty.dtype)))
