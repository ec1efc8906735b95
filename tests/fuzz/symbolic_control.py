"""Templates of If and Loop, whose bodies use values of the graph around them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from tests.fuzz.symbolic_builder import Body, Dim, SymbolicBuilder, Tensor, element_type
from tests.fuzz.symbolic_operators import TEMPLATES, partner, template
from tests.fuzz.symbolic_shapes import size_of

_SCALAR = Tensor("", (), "bool", exact=True)


def _graph(
    build: SymbolicBuilder, name: str, body: Body, inputs: list[Tensor], outputs: list[Tensor]
) -> onnx.GraphProto:
    def described(tensors: list[Tensor]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(t.name, element_type(t.dtype), [None] * t.rank) for t in tensors]

    return helper.make_graph(body.nodes, build.fresh(name), described(inputs), described(outputs))


def _condition(build: SymbolicBuilder) -> str | None:
    """A scalar that depends on the data, or on a size."""
    tensor = build.pick(ranks=(1, 4), exact=True)
    if tensor is None:
        return None
    if build.chance() and not build.special:  # runtimes disagree on maxima with NaN
        whole = Tensor("", (), "float32", exact=True)
        (most,) = build.node("ReduceMax", [tensor.name], [whole], keepdims=0)
        (found,) = build.node("Greater", [most.name, build.constant(1.9)], [_SCALAR])
        return found.name
    flag = Tensor("", (1,), "bool", exact=True)
    size = size_of(build, tensor, build.integer(0, tensor.rank - 1))
    (found,) = build.node("Greater", [size, build.constant([build.integer(0, 8)])], [flag])
    return found.name


def _inner_nodes(build: SymbolicBuilder, tensor: Tensor) -> Tensor:
    """Append a few nodes of the same shape to the current body, and return the last value."""
    current = tensor
    for _ in range(build.integer(1, 2)):
        name = partner(build, current)[0]
        (current,) = build.node(
            build.choice(["Add", "Mul", "Sub"]), [current.name, name], [build.like(tensor, exact=False, bounded=False)]
        )
    if build.chance():
        (current,) = build.node("Tanh", [current.name], [build.like(tensor, exact=False, bounded=True)])
    return current


@template
def branches(build: SymbolicBuilder) -> bool:
    if len(build.bodies) > 2:
        return False
    tensor, condition = build.pick(), _condition(build)
    if tensor is None or condition is None:
        return False
    graphs = []
    for name in ("then", "else"):
        build.bodies.append(Body())
        result = _inner_nodes(build, tensor)
        body = build.bodies.pop()
        graphs.append(_graph(build, name, body, [], [result]))
    result = build.like(tensor, exact=False, bounded=False)
    build.node("If", [condition], [result], then_branch=graphs[0], else_branch=graphs[1])
    return True


@template
def loop(build: SymbolicBuilder) -> bool:
    """A loop with a state of constant shape, a captured value, and a scan output."""
    if len(build.bodies) > 2:
        return False
    state, measured = build.pick(ranks=(0, 3), bounded=True), build.pick(ranks=(1, 4))
    if state is None or measured is None:
        return False
    number = Tensor("", (), "int64", exact=True)
    turns: Dim = build.integer(0, 4)
    count = build.constant(np.int64(turns))
    if build.chance():
        axis = build.integer(0, measured.rank - 1)
        (scalar,) = build.node("Squeeze", [size_of(build, measured, axis)], [number])
        count, turns = scalar.name, measured.shape[axis]
    if not build.fits((turns, *state.shape)):
        return False
    inside = Body([Tensor(build.fresh("s"), state.shape, bounded=True)])
    iteration, going = Tensor(build.fresh("i"), (), "int64", True), Tensor(build.fresh("go"), (), "bool", True)
    build.bodies.append(inside)
    kept = build.node("Identity", [going.name], [_SCALAR])[0]
    following = _inner_nodes(build, inside.tensors[0])
    (following,) = build.node("Tanh", [following.name], [build.like(state, exact=False, bounded=True)])
    collected = [kept, following]
    if build.chance():
        (seen,) = build.node("Sin", [following.name], [build.like(state, exact=False)])
        if turns == 0 or isinstance(turns, str):
            # Sizes of the other axes of an empty stack are undefined if the body does not declare them; ONNX Runtime
            # says 0, which later operators (a reduction over the empty axis) would show: elements without other axes.
            (seen,) = build.node("ReduceSum", [seen.name], [build.like(state, (), exact=False)], keepdims=0)
        collected.append(seen)
    build.bodies.pop()
    body = _graph(build, "body", inside, [iteration, going, inside.tensors[0]], collected)
    results: list[Tensor | None] = [build.like(state, exact=False)]
    if len(collected) > 2:
        results.append(build.like(state, (turns, *collected[2].shape), exact=False))
    build.node("Loop", [count, "", state.name], results, body=body)
    return True


assert TEMPLATES
