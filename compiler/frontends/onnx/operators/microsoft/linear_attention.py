"""com.microsoft: LinearAttention, the recurrence of linear attention and (gated) delta rules, with its gates and
norms."""

from __future__ import annotations

import onnx
from onnx import helper

from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.operators.microsoft.fused import DOMAIN, swish
from compiler.frontends.onnx.registry import converter
from compiler.frontends.onnx.values import TensorValue

_PAST, _DECAY, _RATE = 3, 4, 5
_RULES = ("linear", "gated", "delta", "gated_delta")


@converter("LinearAttention")
@converter("LinearAttention", domain=DOMAIN)
def linear_attention(context: NodeContext) -> list[TensorValue]:
    """A `Scan` over the steps: S = exp(g) S + k (beta (v - (exp(g) S)^T k))^T, o = scale q^T S.

    Rules without a gate omit exp(g), those without a delta add k v^T. Inputs: query, key and value
    (batch, steps, heads * size), past state (batch, heads, key size, value size), decay g (batch, steps, heads) or one
    per element of a key, and rate beta. Query heads that share a key head are adjacent. It computes at least in
    float32; the results have the type of the query, and the state that of the past state, if there is one.
    """
    op, rule = Composer(context), context.choice("update_rule", "gated_delta", _RULES)
    heads, queries = (int(context.required_attribute(name)) for name in ("kv_num_heads", "q_num_heads"))
    widths = [context.shape(index)[2] for index in range(3)]
    if context.attribute("state_window", 0):
        context.refuse("state_window is not supported")
    if queries % heads or not all(isinstance(width, int) for width in widths):
        context.refuse(f"{queries} query heads of {heads} of keys, of widths {widths}, are not supported")
    size, values, dtype = widths[1] // heads, widths[2] // heads, context.dtype(0)
    computed = op.number("float64" if dtype == "float64" else "float32")

    def operand(index: int) -> TensorValue:
        return op("Cast", context.value(index), to=computed)

    inputs = {
        "q": op("Reshape", operand(0), int64s(0, 0, heads, queries // heads, size)),
        "k": op("Reshape", operand(1), int64s(0, 0, heads, size, 1)),
        "v": op("Reshape", operand(2), int64s(0, 0, heads, 1, values)),
    }
    if rule.startswith("gated"):
        inputs["g"] = op("Reshape", op("Exp", operand(_DECAY)), int64s(0, 0, heads, -1, 1))
    if rule.endswith("delta"):
        inputs["beta"] = op("Unsqueeze", operand(_RATE), int64s(3, 4))
    if context.has_input(_PAST):
        state, state_dtype = operand(_PAST), context.dtype(_PAST)
    else:
        batch = op("Slice", op("Shape", context.value(0)), int64s(0), int64s(1))
        zero = op("Cast", 0.0, to=computed)
        state, state_dtype = op("Expand", zero, op("Concat", batch, int64s(heads, size, values), axis=0)), dtype
    scale = float(context.attribute("scale", 0.0)) or size**-0.5
    state, steps = op.outputs(
        2,
        "Scan",
        state,
        *inputs.values(),
        body=_step(list(inputs)),
        num_scan_inputs=len(inputs),
        scan_input_axes=[1] * len(inputs),
        scan_output_axes=[1],
    )
    found = op("Reshape", op("Mul", steps, scale), int64s(0, 0, queries * values))
    return [op("Cast", found, to=op.number(dtype)), op("Cast", state, to=op.number(state_dtype))]


@converter("LinearAttentionGate", domain=DOMAIN)
def linear_attention_gate(context: NodeContext) -> list[TensorValue | None]:
    """The decay and the rate of a gated delta rule, computed in float32: scale * softplus(a + bias), sigmoid(b)."""
    op, dtype = Composer(context), Composer.number(context.dtype(0))
    steps = op("Softplus", op("Add", op("Cast", context.value(0), to=op.number("float32")), context.value(1)))
    decay = op("Cast", op("Mul", steps, context.value(2)), to=dtype)
    return [decay, op("Sigmoid", context.value(3)) if context.has_input(3) else None]


@converter("GatedRMSNorm", domain=DOMAIN)
def gated_rms_norm(context: NodeContext) -> TensorValue:
    """x / sqrt(mean(x^2)) * scale * activation(gate), in float32, over each run of as many elements as `scale` has."""
    op, single = Composer(context), Composer.number("float32")
    (size,), shape = context.shape(1), op("Shape", context.value(0))
    if not isinstance(size, int):
        context.refuse("the size of its scale is not known when compiling")
    x, scale, gate = (op("Cast", context.value(index), to=single) for index in range(3))
    activation = context.attribute("activation", "silu")
    if activation not in ("silu", "swish", "sigmoid"):
        context.refuse(f"the activation {activation!r} is not supported")
    opened = op("Sigmoid", gate) if activation == "sigmoid" else swish(op, gate)
    parts = op("Reshape", x, int64s(-1, size))
    normalized = op("RMSNormalization", parts, scale, epsilon=context.attribute("epsilon", 1e-5), axis=-1)
    return op("Cast", op("Mul", op("Reshape", normalized, shape), opened), to=op.number(context.dtype(0)))


def _step(inputs: list[str]) -> onnx.GraphProto:
    """Return the graph of one step: from the state s (batch, heads, key size, value size) and `inputs` to the next
    state and the results."""
    nodes, state, value = [], "s", "v"
    if "g" in inputs:
        nodes.append(helper.make_node("Mul", ["s", "g"], ["decayed"]))
        state = "decayed"
    if "beta" in inputs:
        nodes += [
            helper.make_node("Mul", [state, "k"], ["products"]),
            helper.make_node("Constant", [], ["keys"], value_ints=[2]),
            helper.make_node("ReduceSum", ["products", "keys"], ["recalled"]),
            helper.make_node("Sub", ["v", "recalled"], ["error"]),
            helper.make_node("Mul", ["error", "beta"], ["update"]),
        ]
        value = "update"
    nodes += [
        helper.make_node("Mul", ["k", value], ["added"]),
        helper.make_node("Add", [state, "added"], ["next"]),
        helper.make_node("MatMul", ["q", "next"], ["result"]),
    ]
    read, written = (
        [onnx.ValueInfoProto(name=name) for name in names] for names in (["s", *inputs], ["next", "result"])
    )
    return helper.make_graph(nodes, "step", read, written)
