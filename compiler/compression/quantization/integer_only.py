"""Pairs for accelerators that compute in integers only: behind every operator, not only before the products.

What an operator is fused with has no pair between: a product and its bias, and a limit on the result of anything. Nor
has a chain of functions of one tensor, element by element, which is one table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.quantization.edit import main_bindings
from compiler.compression.quantization.layers import LayerGraph, Placement, ties
from compiler.compression.quantization.operators import (
    ELEMENTWISE,
    MOVERS,
    MOVES,
    activations_of,
    integer_name,
    is_transparent,
    product_of,
)
from compiler.passes.rewriting.graph import Call, Var, operands, operator_name
from compiler.passes.rewriting.matching import array_of, dtype_of, same_shape, shape_of

_LIMITS = frozenset(f"relax.{name}" for name in ("nn.relu", "nn.relu6", "clip"))


def place_integer_only(
    mod: IRModule, graph: LayerGraph, in_float: Collection[str] = (), operators: Collection[str] = ()
) -> Placement:
    """Pairs where each tensor is made; where an input of the model is read, there.

    Args:
        in_float: names of layers.
        operators: what else the target computes in integers.
    """
    layers = [layer for layer in graph.layers if layer.name not in in_float]
    integer = {layer.variable for layer in layers} | {layer.bias for layer in layers}
    inner = _inner(mod, graph)
    calls = {variable: call for variable, call in graph.definitions.items() if dtype_of(variable) == "float32"}
    joined = {layer.variable for layer in layers} | {
        variable
        for variable, call in calls.items()
        if _is_integer(call, operators) and variable not in _in_float(graph, layers)
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


def _is_integer(call: Call, operators: Collection[str]) -> bool:
    name = operator_name(call)
    if name in MOVERS or name in ELEMENTWISE or is_transparent(call):
        return True
    # A product that is not a layer has two activations, or stays in float.
    both = name == "relax.matmul" and len(activations_of(call)) == 2
    return integer_name(call) in operators and (both or product_of(call, operators) is None)


def _in_float(graph: LayerGraph, layers: Collection[object]) -> set[Var]:
    """Results of the layers that stay in float, with their biases."""
    kept = [layer for layer in graph.layers if layer not in layers]
    return {each for layer in kept for each in (layer.variable, layer.bias) if each is not None}


def _inner(mod: IRModule, graph: LayerGraph) -> set[Var]:
    """Variables that only a bias, a limit, or a function of the same tensor reads."""
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
        if reader is not None and (
            biases.get(variable) == reader
            or (_is_limit(graph.definitions.get(reader)) and variable in graph.definitions)
        ):
            found.add(variable)
    return found | _inside_chains(graph, readers, found)


def _is_limit(call: Call | None) -> bool:
    return isinstance(call, relax.Call) and (
        operator_name(call) in _LIMITS or (operator_name(call) == "relax.call_tir" and "clip" in call.args[0].name_hint)
    )


def _inside_chains(graph: LayerGraph, readers: Mapping[Var, list[Var | None]], inner: Collection[Var]) -> set[Var]:
    """Functions of one tensor that only functions of the same tensor read."""
    sources: dict[Var, Var] = {}
    sums = {layer.bias for layer in graph.layers}
    for variable, call in graph.definitions.items():
        read = [each for _, each in activations_of(call)]
        if _is_pointwise(variable, call) and variable not in sums and not any(each in inner for each in read):
            source = {sources.get(each, each) for each in read}
            if len(source) == 1:
                sources[variable] = source.pop()
    return {
        variable
        for variable, source in sources.items()
        if all(reader is not None and sources.get(reader) == source for reader in readers.get(variable, [None]))
    }


def _is_pointwise(variable: Var, call: Call) -> bool:
    """True if it computes each element from the element there and from single numbers."""
    if not is_transparent(call) or operator_name(call) in MOVES:
        return False
    read = [each for _, each in activations_of(call)]
    numbers = [each for each in call.args if isinstance(each, GenericConst)]
    return (
        bool(read)
        and all(same_shape(shape_of(each), shape_of(variable)) for each in read)
        and all(array_of(each).size == 1 for each in numbers)
    )
