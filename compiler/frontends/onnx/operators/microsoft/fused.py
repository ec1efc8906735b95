"""com.microsoft: products, convolutions and activations that ONNX Runtime's optimizer fuses; small operators.

Normalizations that ONNX Runtime's optimizer fuses, some of which it writes in the default domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.math.matrix import inverted
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue, Value

DOMAIN = "com.microsoft"
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL_ATTRIBUTES = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def given(context: NodeContext, index: int) -> Value | None:
    """Input `index`, or None when it is missing."""
    return context.value(index) if context.has_input(index) else None


def attributes_of(context: NodeContext, *names: str) -> dict[str, Any]:
    """The named attributes that the node has."""
    return {name: context.attribute(name, None) for name in names if context.has_attribute(name)}


def activated(context: NodeContext, op: Composer, value: TensorValue) -> TensorValue:
    """A value after the node's `activation`, with its parameters in `activation_params` or attributes of their own."""
    activation = context.attribute("activation", "")
    parameters: list[float] = context.attribute("activation_params", [])
    alpha = context.attribute("activation_alpha", parameters[0] if parameters else None)
    beta = context.attribute("activation_beta", parameters[1] if len(parameters) > 1 else None)
    if activation in ("", "Relu", "Tanh", "Sigmoid"):
        return op(activation, value) if activation else value
    if activation in ("LeakyRelu", "HardSigmoid", "ScaledTanh", "Elu", "ThresholdedRelu"):
        extra: dict[str, Any] = {"beta": beta} if activation == "HardSigmoid" else {}
        return op(activation, value, alpha=alpha, **extra)
    if activation == "Clip":
        return op("Clip", value, np.float32(alpha), np.float32(beta))
    if activation != "Gelu":
        context.refuse(f"the activation {activation!r} is not supported")
    return op("Gelu", value)


@converter("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(context: NodeContext) -> TensorValue:
    """alpha * A' * B', where ' swaps the last two axes, or moves the second one to the position before the last."""
    op = Composer(context)
    a = _matrix(context, op, 0, "transA", "transBatchA")
    b = _matrix(context, op, 1, "transB", "transBatchB")
    return _scaled(op, op("MatMul", a, b), context.attribute("alpha", 1.0))


@converter("FusedMatMulActivation", domain=DOMAIN)
def fused_matmul_activation(context: NodeContext) -> TensorValue:
    """FusedMatMul and an activation."""
    return activated(context, Composer(context), fused_matmul(context))


def _scaled(op: Composer, value: TensorValue, factor: float) -> TensorValue:
    return value if factor == 1.0 else op("Mul", value, float(factor))


def _matrix(context: NodeContext, op: Composer, index: int, transposed: str, batch: str) -> TensorValue:
    rank = context.rank(index)
    order = list(range(rank))
    if context.attribute(batch, 0):
        # (M, batch..., K): the first axis is the row.
        order = [*range(1, rank - 1), 0, rank - 1]
    if context.attribute(transposed, 0) and rank > 1:
        order[-1], order[-2] = order[-2], order[-1]
    value = context.tensor(index)
    return value if order == list(range(rank)) else op("Transpose", value, perm=order)


@converter("FusedGemm", domain=DOMAIN)
def fused_gemm(context: NodeContext) -> TensorValue:
    """Gemm and an activation."""
    op = Composer(context)
    names = ("alpha", "beta", "transA", "transB")
    product = op("Gemm", context.value(0), context.value(1), given(context, 2), **attributes_of(context, *names))
    return activated(context, op, product)


@converter("FusedConv", domain=DOMAIN)
def fused_conv(context: NodeContext) -> TensorValue:
    """Conv of x, w and b, plus z, and an activation."""
    op = Composer(context)
    inputs = [context.value(0), context.value(1), given(context, 2)]
    result = op("Conv", *inputs, **attributes_of(context, *_CONV_ATTRIBUTES))
    if context.has_input(3):
        result = op("Add", result, context.value(3))
    return activated(context, op, result)


@converter("NhwcConv", "NhwcFusedConv", domain=DOMAIN)
def nhwc_conv(context: NodeContext) -> TensorValue:
    """FusedConv with the channels of data and result last; the weights as in Conv."""
    op, rank = Composer(context), context.rank(0)
    data = op("Transpose", context.value(0), perm=[0, rank - 1, *range(1, rank - 1)])
    inputs = [data, context.value(1), given(context, 2)]
    result = op("Conv", *inputs, **attributes_of(context, *_CONV_ATTRIBUTES))
    result = op("Transpose", result, perm=[0, *range(2, rank), 1])
    if context.has_input(3):
        result = op("Add", result, context.value(3))
    return activated(context, op, result)


@converter("CausalConvWithState")
@converter("CausalConvWithState", domain=DOMAIN)
def causal_conv_with_state(context: NodeContext) -> list[TensorValue]:
    """Depthwise convolution of x (batch, channels, length) that reads no later positions: x, weights, bias, past.

    The second output holds the positions that the next call reads: (batch, channels, (k - 1) * dilation).
    """
    op, (channels, _, size) = Composer(context), context.shape(1)
    for name, usual in (("ndim", 1), ("channels_last", 0), ("state_window", 0), ("state_update_capacity", 0)):
        if context.attribute(name, usual) != usual:
            context.refuse(f"{name}={context.attribute(name, usual)} is not supported")
    if not isinstance(size, int) or not isinstance(channels, int):
        context.refuse("the shape of its weights is not known when compiling")
    step = int(context.attribute("dilation", 1))
    before, data = (size - 1) * step, context.tensor(0)
    if context.has_input(3):
        data = op("Concat", context.value(3), data, axis=2)
    else:
        data = op("Pad", data, int64s(0, 0, before, 0, 0, 0))
    result = op("Conv", data, context.value(1), given(context, 2), group=channels, dilations=[step])
    activation = context.attribute("activation", "none")
    if activation in ("silu", "swish"):
        result = swish(op, result)
    elif activation != "none":
        context.refuse(f"the activation {activation!r} is not supported")
    return [result, op("Slice", data, int64s(-before), int64s(2**62), int64s(2))]


@converter("NhwcMaxPool", domain=DOMAIN)
def nhwc_max_pool(context: NodeContext) -> TensorValue:
    """MaxPool with the channels last."""
    op, rank = Composer(context), context.rank(0)
    data = op("Transpose", context.value(0), perm=[0, rank - 1, *range(1, rank - 1)])
    return op(
        "Transpose", op("MaxPool", data, **attributes_of(context, *_POOL_ATTRIBUTES)), perm=[0, *range(2, rank), 1]
    )


@converter("Gelu", domain=DOMAIN)
def gelu(context: NodeContext) -> TensorValue:
    """x * Phi(x)."""
    return Composer(context)("Gelu", context.value(0))


@converter("BiasGelu", domain=DOMAIN)
def bias_gelu(context: NodeContext) -> TensorValue:
    """Gelu of a sum."""
    op = Composer(context)
    return op("Gelu", op("Add", context.value(0), context.value(1)))


@converter("FastGelu", domain=DOMAIN)
def fast_gelu(context: NodeContext) -> TensorValue:
    """Gelu by tanh, of a sum when there is a bias."""
    op, value = Composer(context), context.value(0)
    if context.has_input(1):
        value = op("Add", value, context.value(1))
    return op("Gelu", value, approximate="tanh")


@converter("QuickGelu", domain=DOMAIN)
def quick_gelu(context: NodeContext) -> TensorValue:
    """x * sigmoid(alpha * x)."""
    return swish(Composer(context), context.tensor(0), context.attribute("alpha", 1.702))


@converter("SwiGLU")
def swiglu(context: NodeContext) -> TensorValue:
    """a * sigmoid(alpha * a) * b."""
    op = Composer(context)
    return op("Mul", swish(op, context.tensor(0), context.attribute("alpha", 1.0)), context.value(1))


@converter("SwiGLU", domain=DOMAIN)
def clamped_swiglu(context: NodeContext) -> TensorValue:
    """SwiGLU of limited operands, `activation_beta` added to the second; both may be the halves of one input."""
    gate, linear = context.tensor(0), given(context, 1)
    if linear is None:
        gate, linear = Composer(context).outputs(2, "Split", gate, axis=-1, num_outputs=2)
    limit = float(context.attribute("limit", 0.0))
    return limited_swiglu(context, gate, linear, limit if limit > 0 else np.inf)


def limited_swiglu(context: NodeContext, gate: TensorValue, linear: Value, limit: float) -> TensorValue:
    """gate * sigmoid(activation_alpha * gate) * (linear + activation_beta), both operands up to `limit`."""
    op = Composer(context)
    if np.isfinite(limit):
        gate, linear = op("Clip", gate, None, limit), op("Clip", linear, -limit, limit)
    linear = op("Add", linear, float(context.attribute("activation_beta", 0.0)))
    return op("Mul", swish(op, gate, context.attribute("activation_alpha", 1.0)), linear)


@converter("ScaledSiLU", domain=DOMAIN)
def scaled_silu(context: NodeContext) -> TensorValue:
    """z * sigmoid(z) of z = scale * x."""
    op = Composer(context)
    scale = op("Cast", context.value(1), to=op.number(context.dtype(0))) if context.has_input(1) else None
    return swish(op, op("Mul", context.value(0), context.attribute("alpha", 1.0) if scale is None else scale))


def swish(op: Composer, value: TensorValue, alpha: float = 1.0) -> TensorValue:
    """x * sigmoid(alpha * x)."""
    return op("Mul", value, op("Sigmoid", _scaled(op, value, alpha)))


@converter("GatedAdd", domain=DOMAIN)
def gated_add(context: NodeContext) -> TensorValue:
    """x + y * gate, a gate for each row."""
    op = Composer(context)
    if context.has_input(3):
        context.refuse("a weight that computes the gate is not supported")
    return op("Add", context.value(0), op("Mul", context.value(1), context.value(2)))


@converter("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(context: NodeContext) -> TensorValue:
    """The first half of x + bias along the last axis, times Gelu of the second."""
    op = Composer(context)
    left, right = op.outputs(2, "Split", op("Add", context.value(0), context.value(1)), axis=-1, num_outputs=2)
    return op("Mul", left, op("Gelu", right))


@converter("BiasAdd", domain=DOMAIN)
def bias_add(context: NodeContext) -> TensorValue:
    """x + bias + skip."""
    op = Composer(context)
    return op("Add", op("Add", context.value(0), context.value(1)), context.value(2))


@converter("BiasSoftmax", domain=DOMAIN)
def bias_softmax(context: NodeContext) -> TensorValue:
    """Softmax of a sum, over all axes from `axis` on; the bias is broadcast over inner or outer batches.

    With is_inner_broadcast each entry of the bias serves as many consecutive batches as there are for one.
    """
    op = Composer(context)
    axis = context.axis(context.attribute("axis", 1), context.rank(0))
    data, bias = context.value(0), context.value(1)
    if axis < context.rank(0) - 1:
        context.refuse("a softmax over more than the last axis is not supported")
    return op("Softmax", op("Add", data, bias), axis=axis)


@converter("BiasDropout", domain=DOMAIN)
def bias_dropout(context: NodeContext) -> TensorValue:
    """x + bias + residual: nothing is dropped outside training."""
    op = Composer(context)
    result = op("Add", context.value(0), context.value(1))
    return op("Add", result, context.value(2)) if context.has_input(2) else result


@converter("ExpandDims", domain=DOMAIN)
def expand_dims(context: NodeContext) -> TensorValue:
    """A new axis of size 1 at a position counted as in the result."""
    return Composer(context)("Unsqueeze", context.value(0), int64s(*context.integers(1)))


@converter("Trilu", "GatherND", "Range", domain=DOMAIN)
def as_in_onnx(context: NodeContext) -> TensorValue:
    """Operators that ONNX has taken over since."""
    inputs: list[object] = [given(context, index) for index in range(len(context.node.input))]
    if context.operator == "Range" and not context.has_input(2):
        inputs = [*inputs[:2], 1]
    names = [attribute.name for attribute in context.node.attribute]
    return Composer(context)(context.operator, *inputs, **attributes_of(context, *names))


@converter("GridSample", domain=DOMAIN)
def grid_sample(context: NodeContext) -> TensorValue:
    """GridSample with the names of modes that ONNX had up to opset 19."""
    attributes = attributes_of(context, "align_corners", "padding_mode")
    mode = context.attribute("mode", "bilinear").replace("bilinear", "linear").replace("bicubic", "cubic")
    return Composer(context)("GridSample", context.value(0), context.value(1), mode=mode, **attributes)


@converter("Pad", domain=DOMAIN)
def pad(context: NodeContext) -> TensorValue:
    """Pad with the widths as an operand, which may be a matrix of one row."""
    op = Composer(context)
    widths = op("Reshape", context.value(1), int64s(-1))
    return op("Pad", context.value(0), widths, given(context, 2), mode=context.attribute("mode", "constant"))


@converter("Unique", domain=DOMAIN)
def unique(context: NodeContext) -> list[TensorValue]:
    """The distinct elements in the order in which they occur first, which one each input is, how often each occurs."""
    distinct, _, inverse, counts = Composer(context).outputs(4, "Unique", context.value(0), sorted=0)
    return [distinct, inverse, counts]


@converter("Inverse", domain=DOMAIN)
def inverse(context: NodeContext) -> TensorValue:
    """Inverses of stacked square matrices."""
    return inverted(context, context.input(0))


@converter("CDist", domain=DOMAIN)
def cdist(context: NodeContext) -> TensorValue:
    """Distances between the rows of two matrices: euclidean, or its square."""
    op = Composer(context)
    metric = context.attribute("metric", "sqeuclidean")
    if metric not in ("sqeuclidean", "euclidean"):
        context.refuse(f"the metric {metric!r} is not supported")
    a, b = op("Unsqueeze", context.value(0), int64s(1)), op("Unsqueeze", context.value(1), int64s(0))
    squares = op("ReduceSumSquare", op("Sub", a, b), int64s(2), keepdims=0)
    return op("Sqrt", squares) if metric == "euclidean" else squares


@converter("ConvTransposeWithDynamicPads", domain=DOMAIN)
def conv_transpose_with_dynamic_pads(context: NodeContext) -> TensorValue:
    """ConvTranspose with the padding as an operand: x, w, pads, bias."""
    op = Composer(context)
    names = ("auto_pad", "dilations", "group", "kernel_shape", "output_padding", "strides")
    pads: dict[str, Any] = {"pads": context.integers(2)} if context.has_input(2) else {}
    inputs = [context.value(0), context.value(1), given(context, 3)]
    return op("ConvTranspose", *inputs, **pads, **attributes_of(context, *names))


@converter(
    "AveragePool",
    "Conv",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool",
    "ReorderInput",
    "ReorderOutput",
    "Upsample",
    domain="com.microsoft.nchwc",
)
def blocked_layout(context: NodeContext) -> TensorValue:
    """Refused: nothing in the model says how its weights are laid out."""
    context.refuse(
        "its layout is that of the machine on which ONNX Runtime optimized the model; save the model with the "
        "optimization level 'extended' or below"
    )


_EPSILON = 1e-12  # default of the fused operators


@converter("LayerNormalization", since=1)
def layer_normalization(context: NodeContext) -> list[TensorValue]:
    """ONNX Runtime writes it for opsets in which ONNX does not have it yet."""
    op, count = Composer(context), len(context.node.output)
    inputs = [context.value(0), context.value(1), given(context, 2)]
    return op.outputs(count, "LayerNormalization", *inputs, **attributes_of(context, "axis", "epsilon", "stash_type"))


@converter("SimplifiedLayerNormalization")
def simplified_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """x / sqrt(mean(x^2) + epsilon) * scale, and the reciprocal of the root."""
    op = Composer(context)
    return _root_mean_square(
        context,
        op,
        context.tensor(0),
        context.tensor(1),
        context.attribute("axis", -1),
        context.attribute("epsilon", 1e-5),
    )


converter("SimplifiedLayerNormalization", domain=DOMAIN)(simplified_layer_normalization)


def _root_mean_square(
    context: NodeContext, op: Composer, x: TensorValue, scale: TensorValue, axis: int, epsilon: float
) -> list[TensorValue]:
    """[normalized, reciprocal of the root of the mean square], computed in float32."""
    rank, dtype = len(x.shape), x.dtype
    axes = range(context.axis(axis, rank), rank)
    wide = x if dtype in ("float32", "float64") else op("Cast", x, to=1)
    mean = op("ReduceMean", op("Mul", wide, wide), int64s(*axes), keepdims=1)
    inverse = op("Reciprocal", op("Sqrt", op("Add", mean, float(epsilon))))
    normalized = op("Mul", wide, inverse)
    if normalized.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(dtype))
    if scale.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(scale.dtype))
    return [op("Mul", normalized, scale), inverse]


def _skip_sum(context: NodeContext, op: Composer, bias: int) -> TensorValue:
    """input + skip (which may lack the batch) + bias."""
    total = op("Add", context.value(0), context.value(1))
    return op("Add", total, context.value(bias)) if context.has_input(bias) else total


@converter("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """LayerNormalization of a sum: input, skip, gamma, beta, bias. Outputs: result, mean, inverse deviation, sum."""
    op = Composer(context)
    total = _skip_sum(context, op, 4)
    epsilon = context.attribute("epsilon", _EPSILON)
    inputs = [total, context.value(2), given(context, 3)]
    outputs = op.outputs(3, "LayerNormalization", *inputs, axis=-1, epsilon=epsilon)
    return [*outputs, total]


@converter("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified_layer_normalization(context: NodeContext) -> list[TensorValue | None]:
    """SimplifiedLayerNormalization of a sum: input, skip, gamma, bias. Outputs as SkipLayerNormalization's."""
    op = Composer(context)
    total = _skip_sum(context, op, 3)
    result, inverse = _root_mean_square(
        context, op, total, context.tensor(2), -1, context.attribute("epsilon", _EPSILON)
    )
    return [result, None if not context.output_used(1) else inverse, inverse, total]


@converter("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """Word, position and segment embeddings summed and normalized; the number of unmasked tokens; the sum.

    Inputs: ids, segments, word, position and segment tables, gamma, beta, mask, positions.
    """
    tables = [context.tensor(index) if context.has_input(index) else None for index in range(2, 7)]
    return embedded(context, tables, position_input=8)


def embedded(
    context: NodeContext, tables: Sequence[TensorValue | None], position_input: int | None
) -> list[TensorValue]:
    """[result, number of tokens, sum]: input 0 holds ids, 1 segments, 7 a mask, `position_input` positions.

    The tables are of words, positions and segments, then gamma and beta.
    """
    op = Composer(context)
    ids = context.tensor(0)
    given_positions = position_input if position_input is not None and context.has_input(position_input) else None
    for index, table in ((0, 2), (1, 4), (given_positions, 3)):
        if index is not None and context.has_input(index):
            require_values(context, index, 0, context.shape(table)[0])
    words, positions, segments, gamma, beta = tables
    total = op("Gather", words, ids, axis=0)
    if given_positions is not None:
        rows = op("Gather", positions, context.value(given_positions), axis=0)
    else:
        require(context, context.shape(3)[0], "at least", context.shape(0)[1])
        length = op("Slice", op("Shape", ids), int64s(1), int64s(2))
        rows = op("Slice", positions, int64s(0), length, int64s(0))
    total = op("Add", total, rows)
    if context.has_input(1):
        total = op("Add", total, op("Gather", segments, context.value(1), axis=0))
    epsilon = context.attribute("epsilon", _EPSILON)
    result = op("LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon)
    return [result, _tokens(context, op, ids), total]


def _tokens(context: NodeContext, op: Composer, ids: TensorValue) -> TensorValue:
    if context.has_input(7):
        return op("ReduceSum", op("Cast", context.value(7), to=6), int64s(1), keepdims=0)
    batch = op("Slice", op("Shape", ids), int64s(0), int64s(1))
    return op("Expand", np.zeros(1, np.int32), batch)
