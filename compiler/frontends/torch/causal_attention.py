"""Attention that is causal or whose heads share keys: one operator, so that nothing hidden is computed or repeated."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from compiler.frontends.onnx.own_domain import OWN_DOMAIN

if TYPE_CHECKING:
    import torch

OPERATOR = "aten.scaled_dot_product_attention.default"
_CAUSAL_ARGUMENT = 5


def needs_operator(program: torch.export.ExportedProgram) -> bool:
    """True if some attention of a program is causal or has heads that share keys."""
    return any(str(node.target) == OPERATOR and _is_special(node) for node in program.graph.nodes)


def _is_special(node: Any) -> bool:
    causal = node.args[_CAUSAL_ARGUMENT] if len(node.args) > _CAUSAL_ARGUMENT else node.kwargs.get("is_causal", False)
    return bool(causal or node.kwargs.get("enable_gqa", False))


def attention(
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
    from onnxscript import opset18 as op

    size = query.shape[-1]
    factor = 1.0 / math.sqrt(int(size)) if scale is None else float(scale)
    if enable_gqa or (is_causal and query.shape[0] == key.shape[0] == value.shape[0]):
        results = _operator()(query, key, value, attn_mask, is_causal=int(is_causal), scale=factor)
        return results[0]
    scaled = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    attn_mask = _causal_mask(op, query, key) if is_causal else attn_mask
    if attn_mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    weights = op.Softmax(op.Add(scores, attn_mask), axis=-1)
    nothing = op.CastLike(op.Constant(value_float=0.0), query)
    return op.MatMul(op.Where(op.IsNaN(weights), nothing, weights), value)


def _causal_mask(op: Any, query: Any, key: Any) -> Any:
    """Minus infinity behind each query's own place, for a batch that is repeated."""

    def places(tensor: Any, axis: int) -> Any:
        length = op.Squeeze(op.Shape(tensor, start=2, end=3))
        zero, one = (op.Constant(value_int=value) for value in (0, 1))
        return op.Unsqueeze(op.Range(zero, length, one), op.Constant(value_ints=[axis]))

    hidden = op.Less(places(query, 1), places(key, 0))
    return op.CastLike(op.Where(hidden, op.Constant(value_float=-math.inf), op.Constant(value_float=0.0)), query)


@cache
def _operator() -> Any:
    """ONNX's Attention in a domain of our own: the exporter writes an older opset than the one that has it."""
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
