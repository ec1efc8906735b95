"""Rewrites MultiHeadAttention in ONNX Runtime GenAI's float16 CPU models to GroupQueryAttention.

Such a graph concatenates past and new keys, repeats them for the heads that share them, and adds a causal mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from compiler.errors import InvalidModelError, OptionError

_KIND = "MultiHeadAttention"
_BIAS, _MASK, _ADDED, _PASTS = 3, 4, 5, (6, 7)
_MOVES = ("Reshape", "Transpose", "Expand", "Unsqueeze")
_SIZES = ((0, 4), (3, 1))  # numbers of past and new tokens for which a mask is evaluated
_HIDDEN = -1e4  # values at or below this, added to a score, hide a position


@dataclass(frozen=True)
class _Part:
    """New keys or values (1, n, width), and their cache."""

    new: str
    past: str
    present: str


def with_grouped_attention(graph: onnx.GraphProto, ids: str, mask: str, path: Path) -> None:
    """Replace each MultiHeadAttention, in place.

    Args:
        ids, mask: input names.
        path: the model's path, for messages.

    Raises:
        OptionError: the attention is not causal, or has a bias.
        InvalidModelError: its keys do not belong to a cache.
    """
    producers = {result: node for node in graph.node for result in node.output if result}
    inputs = {each.name: each for each in graph.input}
    replaced: dict[int, onnx.NodeProto] = {}
    dropped: set[int] = set()
    checked: set[str] = set()
    for node in graph.node:
        if node.op_type != _KIND:
            continue
        operands = [*node.input, *[""] * 8]
        if operands[_BIAS] or operands[_MASK] or not operands[_ADDED]:
            raise OptionError(f"{path}: attention with biases of products, or without a mask, is not supported")
        if operands[_ADDED] not in checked:
            _check_causal(graph, operands[_ADDED], ids, mask, path)
            checked.add(operands[_ADDED])
        keys, values = (_part(node, at, producers, inputs, path) for at in (0, 1))
        dropped.update(id(producers[each.present]) for each in (keys, values) if producers[each.present] is not node)
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        replaced[id(node)] = helper.make_node(
            "GroupQueryAttention",
            [operands[0], keys.new, values.new, keys.past, values.past, "", ""],
            [node.output[0], keys.present, values.present],
            name=node.name,
            domain="com.microsoft",
            num_heads=settings["num_heads"],
            kv_num_heads=inputs[keys.past].type.tensor_type.shape.dim[1].dim_value,
            **({"scale": settings["scale"]} if "scale" in settings else {}),
        )
    nodes = [replaced.get(id(node), node) for node in graph.node if id(node) not in dropped]
    del graph.node[:]
    graph.node.extend(nodes)


def _part(
    node: onnx.NodeProto,
    at: int,
    producers: Mapping[str, onnx.NodeProto],
    inputs: Mapping[str, onnx.ValueInfoProto],
    path: Path,
) -> _Part:
    """Return the keys (at 0) or values (at 1) of an attention."""
    past = node.input[_PASTS[at]] if len(node.input) > _PASTS[at] else ""
    if past:
        return _Part(node.input[1 + at], past, node.output[1 + at])
    name = _moved(node.input[1 + at], producers)
    joined = producers.get(name)
    if joined is None or joined.op_type != "Concat" or len(joined.input) != 2 or joined.input[0] not in inputs:
        raise InvalidModelError(f"{path}: the keys and values of {node.name!r} do not come from a cache")
    return _Part(_moved(joined.input[1], producers), joined.input[0], name)


def _moved(name: str, made: Mapping[str, onnx.NodeProto]) -> str:
    """Follow a tensor back through reshapes."""
    while name in made and made[name].op_type in _MOVES:
        name = made[name].input[0]
    return name


def _check_causal(graph: onnx.GraphProto, name: str, ids: str, mask: str, path: Path) -> None:
    """Raise OptionError unless the mask added to scores hides exactly the later positions."""
    producers = {result: node for node in graph.node for result in node.output if result}
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if value not in needed:
            needed.add(value)
            waiting += producers[value].input if value in producers else []
    nodes = [node for node in graph.node if any(result in needed for result in node.output)]
    inputs = [each for each in graph.input if each.name in needed]
    initializers = [each for each in graph.initializer if each.name in needed]
    output = helper.make_empty_tensor_value_info(name)
    part = helper.make_graph(nodes, "mask", inputs, [output], initializers)
    model = helper.make_model(part, opset_imports=[helper.make_opsetid("", 17)])
    for past, new in _SIZES:
        feeds = {each.name: _example(each, ids, mask, past, new) for each in inputs}
        try:
            [computed] = ReferenceEvaluator(model).run(None, feeds)
        except Exception as error:  # the evaluator's operators may raise anything
            raise OptionError(f"{path}: its attention mask cannot be computed: {str(error)[:200]}") from error
        later = np.arange(past + new)[None] > np.arange(past, past + new)[:, None]
        values = np.asarray(computed, np.float32)
        fits = values.shape[-2:] == later.shape
        if not fits or not (values[..., later] <= _HIDDEN).all() or (values[..., ~later] != 0).any():
            raise OptionError(f"{path}: only causal attention is supported, but its mask is not causal")


def _example(value: onnx.ValueInfoProto, ids: str, mask: str, past: int, new: int) -> np.ndarray:
    """Return an input for a mask of `new` tokens after `past` ones."""
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if value.name in (ids, mask):
        return np.ones((1, new if value.name == ids else past + new), dtype)
    sizes = value.type.tensor_type.shape.dim
    if len(sizes) == 4:
        return np.zeros((1, sizes[1].dim_value, past, max(sizes[3].dim_value, 1)), dtype)
    return np.arange(past, past + new, dtype=dtype)[None]
