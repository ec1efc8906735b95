"""Pairs for accelerators that compute in integers only: behind every operator, not only before the products.

What an operator is fused with has no pair between: a product and its bias, and a limit on the result of anything.
"""

from __future__ import annotations

from collections.abc import Collection

from tvm import relax
from tvm.ir import IRModule

from compiler.compression.quantization.edit import main_bindings
from compiler.compression.quantization.layers import LayerGraph, Placement, ties
from compiler.compression.quantization.operators import ELEMENTWISE, MOVERS, activations_of, is_transparent
from compiler.passes.graph import Call, Var, operands, operator_name
from compiler.passes.matching import dtype_of

_LIMITS = frozenset(f"relax.{name}" for name in ("nn.relu", "nn.relu6", "clip"))


def place_everywhere(mod: IRModule, graph: LayerGraph, in_float: Collection[str] = ()) -> Placement:
    """Pairs where each tensor is made; where an input of the model is read, there."""
    layers = [layer for layer in graph.layers if layer.name not in in_float]
    integer = {layer.variable for layer in layers} | {layer.bias for layer in layers}
    inner = _inner(mod, graph)
    calls = {variable: call for variable, call in graph.definitions.items() if dtype_of(variable) == "float32"}
    joined = {layer.variable for layer in layers} | {
        variable for variable, call in calls.items() if _is_integer(call) and variable not in _in_float(graph, layers)
    }
    made = [variable for variable in calls if (variable in joined or variable in integer) and variable not in inner]
    parameters = set(mod["main"].params)
    read: dict[Var, frozenset[Var]] = {}
    for variable, call in calls.items():
        inputs = frozenset(each for _, each in activations_of(call) if each in parameters)
        if variable in joined:
            read[variable] = inputs
    sites = [each for each in mod["main"].params if any(each in group for group in read.values())] + made
    return Placement(
        tuple(layers), tuple(graph.movers), tuple(sites), read, ties(graph, graph.movers, sites), frozenset(made)
    )


def _is_integer(call: Call) -> bool:
    name = operator_name(call)
    return name in MOVERS or name in ELEMENTWISE or is_transparent(call)


def _in_float(graph: LayerGraph, layers: Collection[object]) -> set[Var]:
    """Results of the layers that stay in float, with their biases."""
    kept = [layer for layer in graph.layers if layer not in layers]
    return {each for layer in kept for each in (layer.variable, layer.bias) if each is not None}


def _inner(mod: IRModule, graph: LayerGraph) -> set[Var]:
    """What only a bias or a limit reads."""
    readers: dict[Var, list[Var | None]] = {}
    for variable, value in main_bindings(mod):
        for each in operands(value):
            readers.setdefault(each, []).append(variable)
    for each in operands(mod["main"].body.body):
        readers.setdefault(each, []).append(None)
    biases = {layer.variable: layer.bias for layer in graph.layers}
    found = set()
    for variable, by in readers.items():
        reader = by[0] if len(by) == 1 else None
        if reader is None:
            continue
        call = graph.definitions.get(reader)
        is_limit = isinstance(call, relax.Call) and (
            operator_name(call) in _LIMITS
            or (operator_name(call) == "relax.call_tir" and "clip" in call.args[0].name_hint)
        )
        if biases.get(variable) == reader or (is_limit and variable in graph.definitions):
            found.add(variable)
    return found
