"""Reduce a failing graph: outputs and nodes are dropped as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
from onnx import helper

Fails = Callable[[onnx.ModelProto], bool]
_MAX_TRIALS = 80


def minimized(model: onnx.ModelProto, fails: Fails) -> onnx.ModelProto:
    """A model that fails like `model`, with as few nodes as a bounded greedy search finds."""
    trials = 0
    changed = True
    while changed and trials < _MAX_TRIALS:
        changed = False
        for smaller in _smaller(model):
            trials += 1
            if trials > _MAX_TRIALS:
                break
            if fails(smaller):
                model, changed = smaller, True
                break
    return model


def _smaller(model: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
    """Models with one output, with an inner value as output, or without a node; smallest first."""
    graph = model.graph
    if len(graph.output) > 1:
        for output in graph.output:
            yield _pruned(model, [output.name])
    else:
        names = [name for node in graph.node[:-1] for name in node.output if name]
        for name in names:
            yield _pruned(model, [name])
    for place, node in enumerate(graph.node):
        if node.input and node.input[0] and node.output[0] not in {output.name for output in graph.output}:
            yield _without(model, place)


def _without(model: onnx.ModelProto, place: int) -> onnx.ModelProto:
    """The model without a node, whose first input replaces its first output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    removed = copy.graph.node[place]
    old, new = removed.output[0], removed.input[0]
    del copy.graph.node[place]
    _rename(copy.graph, old, new)
    return _pruned(copy, [output.name for output in copy.graph.output])


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, old, new)


def _pruned(model: onnx.ModelProto, outputs: list[str]) -> onnx.ModelProto:
    """The part of a model that these outputs need; types are inferred."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, needed, kept = copy.graph, set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= names_read(node)
    nodes = list(reversed(kept))
    inputs = [each for each in graph.input if each.name in needed]
    initializers = [each for each in graph.initializer if each.name in needed]
    described = {each.name: each for each in graph.output}
    results = [described.get(name, onnx.ValueInfoProto(name=name)) for name in outputs]
    smaller = helper.make_graph(nodes, graph.name, inputs, results, initializers)
    return helper.make_model(smaller, opset_imports=model.opset_import, ir_version=model.ir_version)


def names_read(node: onnx.NodeProto) -> set[str]:
    """Values that a node reads, including in its subgraphs."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            names |= {output.name for output in attribute.g.output}
            names = names.union(*(names_read(inner) for inner in attribute.g.node))
    return names
