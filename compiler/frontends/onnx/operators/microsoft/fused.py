"""com.microsoft: matmuls, convolutions and activations fused by ONNX Runtime's optimizer; small operators.

Also normalizations fused by ONNX Runtime's optimizer, some of which it writes in the default domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from compiler.frontends.onnx.bounds import require, require_values
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, composed, int64s
from compiler.frontends.onnx.operators.math.matrix import inverted
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue, Value

DOMAIN = "com.microsoft"
_CONV_ATTRIBUTES = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_POOL_ATTRIBUTES = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")


def given(context: NodeContext, index: int) -> Value | None:
    """Return input `index`, or None if missing."""
    return context.value(index) if context.has_input(index) else None


def attributes_of(context: NodeContext, *names: str) -> dict[str, Any]:
    """Return the named attributes that the node has."""
    return {name: context.attribute(name, None) for name in names if context.has_attribute(name)}


def refuse_unusual(context: NodeContext, **usual: int) -> None:
    """Refuse attributes that differ from their usual values, since their effect is not computed."""
    for name, value in usual.items():
        if context.attribute(name, value) != value:
            context.refuse(f"{name}={context.attribute(name, value)} is not supported")


def activated(context: NodeContext, op: Composer, value: TensorValue) -> TensorValue:
    """Apply the node's `activation`, with parameters in `activation_params` or in separate attributes."""
    activation = context.attribute("activation", "")
    parameters: list[float] = context.attribute("activation_params", [])
    alpha = context.attribute("activation_alpha", parameters[0] if parameters else None)
    beta = context.attribute("activation_beta", parameters[1] if len(parameters) > 1 else None)
    if activation in ("", "Relu", "Tanh", "Sigmoid", "Softplus", "Softsign", "HardSwish"):
        return op(activation, value) if activation else value
    if activation in ("LeakyRelu", "HardSigmoid", "ScaledTanh", "Elu", "ThresholdedRelu"):
        extra: dict[str, Any] = {"beta": beta} if activation in ("HardSigmoid", "ScaledTanh") else {}
        return op(activation, value, alpha=alpha, **extra)
    if activation == "Clip":
        return op("Clip", value, np.float32(alpha), np.float32(beta))
    if activation != "Gelu":
        context.refuse(f"the activation {activation!r} is not supported")
    return op("Gelu", value)


@converter("FusedMatMul", "TransposeMatMul", domain=DOMAIN)
def fused_matmul(context: NodeContext) -> TensorValue:
    """alpha * A' * B', with ' swapping the last two axes, or moving the first axis to the second last position."""
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
    """FusedConv with the channels of data and result last.

    NhwcFusedConv has weights as in Conv. Those of NhwcConv have their channels last, too, as ONNX Runtime's optimizer
    writes them and its GPU kernel reads them, although its schema says otherwise.
    """
    op, weights = Composer(context), context.tensor(1)
    if context.operator == "NhwcConv":
        weights = channels_first(op, weights)
    inputs = [channels_first(op, context.tensor(0)), weights, given(context, 2)]
    result = channels_last(op, op("Conv", *inputs, **attributes_of(context, *_CONV_ATTRIBUTES)))
    if context.has_input(3):
        result = op("Add", result, context.value(3))
    return activated(context, op, result)


def channels_first(op: Composer, value: TensorValue) -> TensorValue:
    """(N, ..., C) -> (N, C, ...)."""
    rank = len(value.shape)
    return op("Transpose", value, perm=[0, rank - 1, *range(1, rank - 1)])


def channels_last(op: Composer, value: TensorValue) -> TensorValue:
    """(N, C, ...) -> (N, ..., C)."""
    return op("Transpose", value, perm=[0, *range(2, len(value.shape)), 1])


@converter("CausalConvWithState")
@converter("CausalConvWithState", domain=DOMAIN)
def causal_conv_with_state(context: NodeContext) -> list[TensorValue]:
    """Depthwise causal convolution of x (batch, channels, length); inputs: x, weights, bias, past.

    The second output holds the positions needed by the next call: (batch, channels, (k - 1) * dilation).
    """
    op, (channels, _, size) = Composer(context), context.shape(1)
    refuse_unusual(context, ndim=1, channels_last=0, state_channels_last=-1, state_window=0, state_length=0)
    refuse_unusual(context, state_update_capacity=0, input_channel_offset=0, input_channels=0)
    if not isinstance(size, int) or not isinstance(channels, int):
        context.refuse("the shape of its weights is not known when compiling")
    step = int(context.attribute("dilation", 1))
    history, data = (size - 1) * step, context.tensor(0)
    if context.has_input(3):
        data = op("Concat", context.value(3), data, axis=2)
    else:
        data = op("Pad", data, int64s(0, 0, history, 0, 0, 0))
    result = op("Conv", data, context.value(1), given(context, 2), group=channels, dilations=[step])
    activation = context.attribute("activation", "none")
    if activation in ("silu", "swish"):
        result = swish(op, result)
    elif activation != "none":
        context.refuse(f"the activation {activation!r} is not supported")
    start = -history or 2**62  # a kernel of one position keeps none
    return [result, op("Slice", data, int64s(start), int64s(2**62), int64s(2))]


@converter("NhwcMaxPool", domain=DOMAIN)
def nhwc_max_pool(context: NodeContext) -> TensorValue:
    """MaxPool with channels last."""
    op = Composer(context)
    pooled = op("MaxPool", channels_first(op, context.tensor(0)), **attributes_of(context, *_POOL_ATTRIBUTES))
    return channels_last(op, pooled)


@composed("Gelu", domain=DOMAIN)
def gelu(op: Composer, x: TensorValue) -> TensorValue:
    """x * Phi(x)."""
    return op("Gelu", x)


@composed("BiasGelu", domain=DOMAIN)
def bias_gelu(op: Composer, x: TensorValue, bias: TensorValue) -> TensorValue:
    """Gelu of a sum."""
    return op("Gelu", op("Add", x, bias))


@composed("FastGelu", domain=DOMAIN)
def fast_gelu(op: Composer, x: TensorValue, bias: TensorValue | None = None) -> TensorValue:
    """Tanh approximation of Gelu, of a sum if there is a bias."""
    return op("Gelu", x if bias is None else op("Add", x, bias), approximate="tanh")


@composed("QuickGelu", domain=DOMAIN)
def quick_gelu(op: Composer, x: TensorValue, *, alpha: float = 1.702) -> TensorValue:
    """x * sigmoid(alpha * x)."""
    return swish(op, x, alpha)


@composed("SwiGLU")
def swiglu(op: Composer, a: TensorValue, b: TensorValue, *, alpha: float = 1.0) -> TensorValue:
    """a * sigmoid(alpha * a) * b."""
    return op("Mul", swish(op, a, alpha), b)


@composed("SwiGLU", domain=DOMAIN)
def clamped_swiglu(
    op: Composer, gate: TensorValue, linear: TensorValue | None = None, *, limit: float = 0.0
) -> TensorValue:
    """SwiGLU of clamped operands, with `activation_beta` added to the second; they may be the halves of one input."""
    refuse_unusual(op.context, round_activation=0)
    if linear is None:
        gate, linear = op.outputs(2, "Split", gate, axis=-1, num_outputs=2)
    return limited_swiglu(op.context, gate, linear, limit if limit > 0 else np.inf)


def limited_swiglu(context: NodeContext, gate: TensorValue, linear: Value, limit: float) -> TensorValue:
    """gate * sigmoid(activation_alpha * gate) * (linear + activation_beta), with both operands clamped to `limit`."""
    op = Composer(context)
    if np.isfinite(limit):
        gate, linear = op("Clip", gate, None, limit), op("Clip", linear, -limit, limit)
    linear = op("Add", linear, float(context.attribute("activation_beta", 0.0)))
    return op("Mul", swish(op, gate, context.attribute("activation_alpha", 1.0)), linear)


@composed("ScaledSiLU", domain=DOMAIN)
def scaled_silu(op: Composer, x: TensorValue, scale: TensorValue | None = None, *, alpha: float = 1.0) -> TensorValue:
    """z * sigmoid(z) with z = scale * x."""
    return swish(op, op("Mul", x, alpha if scale is None else op("Cast", scale, to=op.number(x.dtype))))


def swish(op: Composer, value: TensorValue, alpha: float = 1.0) -> TensorValue:
    """x * sigmoid(alpha * x)."""
    return op("Mul", value, op("Sigmoid", _scaled(op, value, alpha)))


@composed("GatedAdd", domain=DOMAIN)
def gated_add(
    op: Composer, x: TensorValue, y: TensorValue, gate: TensorValue, weight: TensorValue | None = None
) -> TensorValue:
    """x + y * gate, with one gate per row."""
    if weight is not None:
        op.context.refuse("a weight that computes the gate is not supported")
    return op("Add", x, op("Mul", y, gate))


@composed("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(op: Composer, x: TensorValue, bias: TensorValue) -> TensorValue:
    """The first half of x + bias along the last axis, times Gelu of the second."""
    left, right = op.outputs(2, "Split", op("Add", x, bias), axis=-1, num_outputs=2)
    return op("Mul", left, op("Gelu", right))


_TRAINING = 4  # an input of BiasDropout


@composed("BiasAdd", "BiasDropout", domain=DOMAIN)
def biased(op: Composer, x: TensorValue, bias: TensorValue, residual: TensorValue | None = None) -> TensorValue:
    """x + bias + residual: there is no dropout outside training."""
    if op.context.operator == "BiasDropout" and op.context.scalar(_TRAINING, False):
        op.context.refuse("in training mode it drops elements at random")
    total = op("Add", x, bias)
    return total if residual is None else op("Add", total, residual)


@composed("BiasSoftmax", domain=DOMAIN)
def bias_softmax(op: Composer, x: TensorValue, bias: TensorValue, *, axis: int = 1) -> TensorValue:
    """Softmax of a sum, over all axes from `axis` on; the bias is broadcast over inner or outer batches.

    With is_inner_broadcast, each entry of the bias is used for several consecutive batches.
    """
    rank = len(x.shape)
    if op.context.axis(axis, rank) < rank - 1:
        op.context.refuse("a softmax over more than the last axis is not supported")
    return op("Softmax", op("Add", x, bias), axis=rank - 1)


@converter("ExpandDims", domain=DOMAIN)
def expand_dims(context: NodeContext) -> TensorValue:
    """Insert a new axis of size 1 at a position in the result."""
    return Composer(context)("Unsqueeze", context.value(0), int64s(*context.integers(1)))


@converter("Trilu", "GatherND", "Range", domain=DOMAIN)
def as_in_onnx(context: NodeContext) -> TensorValue:
    """Operators since adopted by ONNX."""
    inputs: list[object] = [given(context, index) for index in range(len(context.node.input))]
    if context.operator == "Range" and not context.has_input(2):
        inputs = [*inputs[:2], 1]
    names = [attribute.name for attribute in context.node.attribute]
    return Composer(context)(context.operator, *inputs, **attributes_of(context, *names))


@converter("GridSample", domain=DOMAIN)
def grid_sample(context: NodeContext) -> TensorValue:
    """GridSample with the mode names of ONNX up to opset 19."""
    attributes = attributes_of(context, "align_corners", "padding_mode")
    mode = context.attribute("mode", "bilinear").replace("bilinear", "linear").replace("bicubic", "cubic")
    return Composer(context)("GridSample", context.value(0), context.value(1), mode=mode, **attributes)


@composed("Pad", domain=DOMAIN)
def pad(
    op: Composer, x: TensorValue, widths: TensorValue, value: TensorValue | None = None, *, mode: str = "constant"
) -> TensorValue:
    """Pad with the widths as an operand, possibly a one-row matrix."""
    return op("Pad", x, op("Reshape", widths, int64s(-1)), value, mode=mode)


@composed("Unique", domain=DOMAIN)
def unique(op: Composer, x: TensorValue) -> list[TensorValue]:
    """Return distinct elements in order of first occurrence, each input's index among them, and their counts."""
    distinct, _, inverse, counts = op.outputs(4, "Unique", x, sorted=0)
    return [distinct, inverse, counts]


@converter("Inverse", domain=DOMAIN)
def inverse(context: NodeContext) -> TensorValue:
    """Invert stacked square matrices."""
    return inverted(context, context.input(0))


@composed("CDist", domain=DOMAIN)
def cdist(op: Composer, a: TensorValue, b: TensorValue, *, metric: str = "sqeuclidean") -> TensorValue:
    """Distances between the rows of two matrices: euclidean, or its square."""
    if metric not in ("sqeuclidean", "euclidean"):
        op.context.refuse(f"the metric {metric!r} is not supported")
    difference = op("Sub", op("Unsqueeze", a, int64s(1)), op("Unsqueeze", b, int64s(0)))
    squares = op("ReduceSumSquare", difference, int64s(2), keepdims=0)
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
    """Refused: the model does not specify the layout of its weights."""
    context.refuse(
        "its layout is that of the machine on which ONNX Runtime optimized the model; save the model with the "
        "optimization level 'extended' or below"
    )


_EPSILON = 1e-12  # default of the fused operators


@converter("LayerNormalization", since=1)
def layer_normalization(context: NodeContext) -> list[TensorValue]:
    """LayerNormalization as written by ONNX Runtime in opsets that lack it."""
    op, count = Composer(context), len(context.node.output)
    inputs = [context.value(0), context.value(1), given(context, 2)]
    return op.outputs(count, "LayerNormalization", *inputs, **attributes_of(context, "axis", "epsilon", "stash_type"))


@composed("SimplifiedLayerNormalization")
@composed("SimplifiedLayerNormalization", domain=DOMAIN)
def simplified_layer_normalization(
    op: Composer, x: TensorValue, scale: TensorValue, *, axis: int = -1, epsilon: float = 1e-5
) -> list[TensorValue]:
    """x / sqrt(mean(x^2) + epsilon) * scale, and the reciprocal of the root, computed in float32."""
    rank, dtype = len(x.shape), x.dtype
    axes = range(op.context.axis(axis, rank), rank)
    wide = x if dtype in ("float32", "float64") else op("Cast", x, to=1)
    mean = op("ReduceMean", op("Mul", wide, wide), int64s(*axes), keepdims=1)
    inverse = op("Reciprocal", op("Sqrt", op("Add", mean, epsilon)))
    normalized = op("Mul", wide, inverse)
    if normalized.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(dtype))
    if scale.dtype != dtype:
        normalized = op("Cast", normalized, to=op.number(scale.dtype))
    return [op("Mul", normalized, scale), inverse]


@composed("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(
    op: Composer,
    x: TensorValue,
    skip: TensorValue,
    gamma: TensorValue,
    beta: TensorValue | None = None,
    bias: TensorValue | None = None,
    *,
    epsilon: float = _EPSILON,
) -> list[TensorValue]:
    """LayerNormalization of a sum: result, mean, inverse deviation, sum. `skip` may lack the batch axis."""
    total = biased(op, x, skip, bias)
    return [*op.outputs(3, "LayerNormalization", total, gamma, beta, axis=-1, epsilon=epsilon), total]


@composed("SkipSimplifiedLayerNormalization", domain=DOMAIN)
def skip_simplified_layer_normalization(
    op: Composer,
    x: TensorValue,
    skip: TensorValue,
    gamma: TensorValue,
    bias: TensorValue | None = None,
    *,
    epsilon: float = _EPSILON,
) -> list[TensorValue | None]:
    """SimplifiedLayerNormalization of a sum; outputs as for SkipLayerNormalization."""
    total = biased(op, x, skip, bias)
    result, inverse = simplified_layer_normalization(op, total, gamma, epsilon=epsilon)
    return [result, None if not op.context.output_used(1) else inverse, inverse, total]


@converter("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(context: NodeContext) -> list[TensorValue]:
    """Sum word, position and segment embeddings and normalize; also return the number of unmasked tokens and the sum.

    Inputs: ids, segments, word, position and segment tables, gamma, beta, mask, positions.
    """
    tables = [context.tensor(index) if context.has_input(index) else None for index in range(2, 7)]
    return embedded(context, tables, position_input=8)


def embedded(
    context: NodeContext, tables: Sequence[TensorValue | None], position_input: int | None
) -> list[TensorValue]:
    """Return [result, number of tokens, sum]: input 0 holds ids, 1 segments, 7 a mask, `position_input` positions.

    The tables are words, positions and segments, then gamma and beta.
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
