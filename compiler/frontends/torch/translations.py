"""PyTorch operators that correspond to one ONNX operator, but that the ONNX exporter converts wrongly or not at all,
including those of quantized programs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.frontends.onnx.registry import OWN_DOMAIN
from compiler.frontends.torch.decomposition import every_node
from compiler.frontends.torch.recurrent_layers import OPERATORS, translation
from compiler.frontends.torch.resampling import RESAMPLING

if TYPE_CHECKING:
    import torch

# Bounds of the types that programs quantize to.
_BOUNDS = {"uint8": (0, 255), "int8": (-128, 127), "uint16": (0, 65535), "int16": (-32768, 32767)}


def int_mm(first: object, second: object) -> Any:
    """Matmul of 8-bit integers with an int32 result."""
    return _opset().MatMulInteger(first, second)


def _choose(data: object, low: int, high: int, smallest: float, dtype: int) -> tuple[Any, Any]:
    """Return (scale, zero point) that cover the data's range and zero: float64 and int64, of shape (1,)."""
    op = _opset()
    least, most = op.Min(op.ReduceMin(data, keepdims=0), 0.0), op.Max(op.ReduceMax(data, keepdims=0), 0.0)
    scale = op.Max(op.Div(op.Sub(most, least), float(high - low)), smallest)
    zero = op.Clip(op.Sub(float(low), op.Round(op.Div(least, scale))), float(low), float(high))
    return _one(op.Cast(scale, to=_onnx_type("float64"))), _one(op.Cast(zero, to=_onnx_type("int64")))


def _choose_symmetric(data: object, low: int, high: int, smallest: float, dtype: int) -> tuple[Any, Any]:
    """Like `_choose`, with the zero point in the middle of the type."""
    op = _opset()
    most = op.ReduceMax(op.Abs(data), keepdims=0)
    scale = op.Max(op.Div(most, float(high - low) / 2), smallest)
    middle = 128 if dtype == _onnx_type("uint8") else 0
    return _one(op.Cast(scale, to=_onnx_type("float64"))), op.Constant(value_ints=[middle])


def _quantize(data: object, scale: object, zero: object, low: int, high: int, dtype: int) -> Any:
    """Quantize, clamped to `low` and `high`, which are narrower than the type for reduced ranges."""
    op = _opset()
    scale, zero = _parameters(scale, zero, dtype)
    if (low, high) != _BOUNDS[_name(dtype)]:
        wide = op.Cast(zero, to=_onnx_type("float32"))
        data = op.Clip(data, op.Mul(op.Sub(float(low), wide), scale), op.Mul(op.Sub(float(high), wide), scale))
    return op.QuantizeLinear(data, scale, zero)


def _dequantize(
    data: object, scale: object, zero: object, low: int, high: int, dtype: int, out_dtype: int | None = None
) -> Any:
    """Convert to float32, or to another requested float type."""
    op = _opset()
    wide = op.DequantizeLinear(data, *_parameters(scale, zero, dtype))
    return wide if out_dtype in (None, -1) else op.Cast(wide, to=out_dtype)


def _parameters(scale: object, zero: object, dtype: int) -> tuple[Any, Any]:
    """Return both as scalars, from numbers or one-element tensors."""
    import onnx

    op, name = _opset(), _name(dtype)
    if isinstance(scale, int | float) and isinstance(zero, int):
        value = onnx.numpy_helper.from_array(np.asarray(zero, name))
        return op.Constant(value_float=float(scale)), op.Constant(value=value)
    shape = op.Constant(value=onnx.numpy_helper.from_array(np.zeros(0, np.int64)))
    narrow = op.Cast(scale, to=_onnx_type("float32")), op.Cast(zero, to=dtype)
    return op.Reshape(narrow[0], shape), op.Reshape(narrow[1], shape)


def _one(scalar: object) -> Any:
    op = _opset()
    return op.Reshape(scalar, op.Constant(value_ints=[1]))


def _name(dtype: int) -> str:
    import onnx

    return str(onnx.helper.tensor_dtype_to_np_dtype(dtype))


def _onnx_type(name: str) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(name)))


def _opset() -> Any:
    from onnxscript import opset18

    return opset18


QUANTIZED_OPERATORS: dict[str, Callable[..., Any]] = {
    "quantized_decomposed.choose_qparams.tensor": _choose,
    "quantized_decomposed.choose_qparams_symmetric.tensor": _choose_symmetric,
    "quantized_decomposed.quantize_per_tensor.default": _quantize,
    "quantized_decomposed.quantize_per_tensor.tensor": _quantize,
    "quantized_decomposed.dequantize_per_tensor.tensor": _dequantize,
}


_ATTENTION = "aten.scaled_dot_product_attention.default"
_CAUSAL_ARGUMENT = 5


def _has_special_attention(program: torch.export.ExportedProgram) -> bool:
    """True if some attention of a program is causal or has heads that share keys."""
    return any(str(node.target) == _ATTENTION and _is_special(node) for node in program.graph.nodes)


def _is_special(node: Any) -> bool:
    causal = node.args[_CAUSAL_ARGUMENT] if len(node.args) > _CAUSAL_ARGUMENT else node.kwargs.get("is_causal", False)
    return bool(causal or node.kwargs.get("enable_gqa", False))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Like the exporter's conversion, for (batch, heads, length, size) tensors; dropout applies only to training."""
    from onnxscript import ir
    from onnxscript import opset18 as op

    size = query.shape[-1]
    factor = 1.0 / math.sqrt(int(size)) if scale is None else float(scale)
    if enable_gqa or (is_causal and query.shape[0] == key.shape[0] == value.shape[0]):
        operands = query, key, value, attn_mask
        if query.dtype == ir.DataType.DOUBLE:  # attributes are float32
            operands, factor = (op.Mul(query, op.CastLike(factor, query)), *operands[1:]), 1.0
        return _attention_operator()(*operands, is_causal=int(is_causal), scale=factor)[0]
    scaled = op.Mul(query, op.CastLike(factor, query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    attn_mask = _causal_mask(op, query, key) if is_causal else attn_mask
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    weights = op.Softmax(op.Add(scores, attn_mask), axis=-1)
    nothing = op.CastLike(op.Constant(value_float=0.0), query)
    return op.MatMul(op.Where(op.IsNaN(weights), nothing, weights), value)


def _causal_mask(op: Any, query: Any, key: Any) -> Any:
    """Return a mask of minus infinity after each query's own position, for a broadcast batch."""

    def positions(tensor: Any, axis: int) -> Any:
        length = op.Squeeze(op.Shape(tensor, start=2, end=3))
        zero, one = (op.Constant(value_int=value) for value in (0, 1))
        return op.Unsqueeze(op.Range(zero, length, one), op.Constant(value_ints=[axis]))

    hidden = op.Less(positions(query, 1), positions(key, 0))
    return op.CastLike(op.Where(hidden, op.Constant(value_float=-math.inf), op.Constant(value_float=0.0)), query)


@cache
def _attention_operator() -> Any:
    """Return ONNX's Attention in a domain of our own: the exporter emits an opset older than the operator."""
    import onnx.defs
    from onnxscript.values import Op, Opset

    known = onnx.defs.get_schema("Attention", 23)
    constraints = [(each.type_param_str, each.allowed_type_strs, "") for each in known.type_constraints]
    schema = onnx.defs.OpSchema(
        "Attention",
        OWN_DOMAIN,
        1,
        inputs=list(known.inputs),
        outputs=list(known.outputs),
        type_constraints=constraints,
        attributes=list(known.attributes.values()),
    )
    return Op(Opset(OWN_DOMAIN, 1), "Attention", schema)


_GROUPED_MATMULS = ("aten._grouped_mm.default", "transformers.grouped_mm_fallback.default")


def _grouped_matmul(
    rows: Any, weights: Any, offs: Any = None, bias: Any = None, out_dtype: int | None = None, **_: object
) -> Any:
    """Multiply rows (n, depth) by weights (groups, depth, columns); `offs` is the end of each group's rows."""
    if offs is None or bias is not None or out_dtype is not None or len(rows.shape) != 2 or len(weights.shape) != 3:
        raise ValueError("grouped matmuls are supported only for rows (n, depth) and matrices (groups, depth, columns)")
    return _grouped_matmul_operator()(rows, weights, offs)


@cache
def _grouped_matmul_operator() -> Any:
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


def translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the exporter's `custom_translation_table`. A package's operators exist only if the program uses them."""
    import torch

    known = {node.target: KNOWN[str(node.target)] for node in program.graph.nodes if str(node.target) in KNOWN}
    resampling = {overload(name): conversion for name, conversion in RESAMPLING.items()}
    attentions = {overload(_ATTENTION): _attention} if _has_special_attention(program) else {}
    sums = {overload("aten.add.Tensor"): _add} if _adds_booleans(program) else {}
    volumes = {overload(_CONV3D): _conv3d} if _convolves_volumes(program) else {}
    # Of the exporter's own decompositions.
    views = {overload(f"prims.{name}.default"): _itself for name in ("view_of", "copy_strided")}
    numbers: dict[Callable[..., Any], Callable[..., Any]] = {operator.floordiv: _floor_quotient, round: _rounded}
    return {
        torch.ops.aten._int_mm.default: int_mm,
        **views,
        **resampling,
        **attentions,
        **sums,
        **volumes,
        **numbers,
        **known,
    }


_CONV3D = "aten.conv3d.default"


def _convolves_volumes(program: torch.export.ExportedProgram) -> bool:
    """True if there are convolutions of volumes, all of real numbers; the exporter's own conversion handles complex
    ones."""
    values = [node.meta.get("val") for node in every_node(program) if str(node.target) == _CONV3D]
    return bool(values) and not any(each is None or each.dtype.is_complex for each in values)


def _conv3d(
    values: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Like the exporter's conversion, which adds biases of the wrong rank to convolutions without one."""
    from onnxscript import opset18 as op

    strides, pads, dilations = (list(each) * (3 // len(each)) for each in (stride, padding, dilation))
    single = len(values.shape) == 4
    batch = op.Unsqueeze(values, op.Constant(value_ints=[0])) if single else values
    operands = (batch, weight) if bias is None else (batch, weight, bias)
    result = op.Conv(*operands, strides=strides, pads=[*pads, *pads], dilations=dilations, group=groups)
    return op.Squeeze(result, op.Constant(value_ints=[0])) if single else result


def _floor_quotient(size: Any, divisor: Any) -> Any:
    """Integer quotient of Python, rounded down; the exporter's own is rounded toward zero."""
    from onnxscript import opset18 as op

    return op.Div(op.Sub(size, op.Mod(size, divisor)), divisor)


def _rounded(size: Any, digits: int | None = None) -> Any:
    """Round a float size half to even, like `round`."""
    from onnxscript import opset18 as op

    if digits is not None:
        raise NotImplementedError("sizes are rounded only to integers")
    return op.Cast(op.Round(size), to=_onnx_type("int64"))


def _itself(values: object, _stride: object = None) -> Any:
    from onnxscript import opset18

    return opset18.Identity(values)


def _adds_booleans(program: torch.export.ExportedProgram) -> bool:
    """True if a sum adds booleans, which the exporter's own conversion (kept for complex numbers) does not support."""
    import torch

    sums = ("aten.add.Tensor", "aten.add_.Tensor")
    nodes = [node for node in every_node(program) if str(node.target) in sums]
    dtypes = {node.meta["val"].dtype for node in nodes if "val" in node.meta}
    return torch.bool in dtypes and not any(dtype.is_complex for dtype in dtypes)


def _add(left: Any, right: Any, alpha: float = 1) -> Any:
    """left + alpha * right, which is `or` for booleans."""
    from onnxscript import ir, opset18

    if left.dtype == ir.DataType.BOOL:
        return opset18.Or(left, right if alpha else opset18.And(right, opset18.Not(right)))
    return opset18.Add(left, right if alpha == 1 else opset18.Mul(right, opset18.CastLike(alpha, right)))


def overload(name: str) -> Callable[..., Any]:
    """Return the overload of a name such as "aten.upsample_bilinear2d.vec"."""
    import torch

    namespace, operator, variant = name.split(".")
    found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), operator), variant)
    return found


def _roi_pool(values: object, regions: object, scale: float, height: int, width: int) -> Any:
    """Return the largest elements; the second output, their positions, is used only in training."""
    from onnxscript import opset18

    pooled = opset18.MaxRoiPool(values, regions, pooled_shape=[height, width], spatial_scale=scale)
    return pooled, opset18.Shape(pooled)


def _masked_select(values: Any, mask: Any) -> Any:
    """Return the values selected by the mask, both broadcast, as one axis."""
    from onnxscript import opset18 as op

    flat = op.Constant(value_ints=[-1])
    chosen = op.Reshape(op.Expand(mask, op.Shape(values)), flat)
    return op.Compress(op.Reshape(op.Expand(values, op.Shape(mask)), flat), chosen, axis=0)


def _unique_consecutive(
    values: object, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """Return the first element of each run of equal elements, the run of each element, and the lengths of runs."""
    from onnxscript import opset18 as op

    if dim is not None:
        raise NotImplementedError("unique_consecutive along a dimension is not supported; flatten its input")
    flat, last = op.Reshape(values, [-1]), [2**62]
    size = op.Shape(flat)
    same = op.Equal(op.Slice(flat, [1], last), op.Slice(flat, [0], [-1]))
    starts = op.Concat(op.Greater(size, op.Constant(value_ints=[0])), op.Not(same), axis=0)
    numbers = op.CumSum(op.Cast(starts, to=7), op.Constant(value_int=0))
    inverse = op.Reshape(op.Sub(numbers, op.Constant(value_int=1)), op.Shape(values))
    zero, one = (op.Constant(value_int=value) for value in (0, 1))
    positions = op.Compress(op.Range(zero, op.Squeeze(size), one), starts)
    counts = op.Sub(op.Concat(op.Slice(positions, [1], last), size, axis=0), positions)
    return op.Compress(flat, starts), inverse, counts


KNOWN: dict[str, Callable[..., Any]] = {
    "aten.masked_select.default": _masked_select,
    "aten.unique_consecutive.default": _unique_consecutive,
    "torchvision.roi_pool.default": _roi_pool,
    **dict.fromkeys(_GROUPED_MATMULS, _grouped_matmul),
    **QUANTIZED_OPERATORS,
    **{name: translation(name) for name in OPERATORS},
}
