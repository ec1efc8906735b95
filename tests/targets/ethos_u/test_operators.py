"""Each operator with random parameters and sizes: found, compiled by Vela, simulated, equal to the reference model."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.ethos_u.checking import DEFAULT, check, off_by, planned
from tests.targets.ethos_u.graphs import QuantizedGraph
from tests.targets.ethos_u.operators import OPERATORS

# Steps of the result that it may be off what ONNX Runtime computes: 1 where all is rounded once; half of what a step of
# the operand is in steps of the result (up to 10 times) is lost where resizing one axis rounds before the other, and
# where the hardware's average does before the rescaling.
_TOLERANCES = {"linear": 6.0, "linear to any size": 6.0, "average pool": 6.0}


@pytest.mark.parametrize("name", list(OPERATORS))
def test_operator(name: str) -> None:
    operator, build, count = OPERATORS[name]
    for seed in range(count):
        graph = QuantizedGraph(seed, "uint8" if seed % 4 == 3 else "int8")
        name_of_result = build(graph)
        rounded = name_of_result in graph.rounded_names
        model = graph.model(name_of_result if rounded else graph.rounded(name_of_result))
        found, plan = planned(model)
        assert not found.refused, f"seed {seed}"
        (segment,) = plan.parts.values()
        assert next(step.operator for step in segment.steps).startswith(operator), f"seed {seed}"
        check(segment)
        assert off_by(model) <= _TOLERANCES.get(name, 1.001), f"seed {seed}"


@pytest.mark.parametrize("before", ["Pad", "Tile", "Concat", "Slice", "Conv"])
def test_what_is_joined_keeps_its_scale(before: str) -> None:
    """Whatever a joined tensor is made by: Vela drops a rescaling between two operators that write pieces."""
    graph = QuantizedGraph(11)
    x = graph.input(1, 4, 6, 6)
    operands = {
        "Pad": [x, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1]))],
        "Tile": [x, graph.constant(np.array([1, 1, 2, 1]))],
        "Concat": [x, x],
        "Slice": [x, *(graph.constant(np.array(each)) for each in ([0, 0], [6, 6], [2, 3], [2, 2]))],
        "Conv": [x, graph.weight((4, 2, 3, 3), 0)],
    }[before]
    attributes = {"Concat": {"axis": 2}, "Conv": {"group": 2}}.get(before, {})
    one = graph.rounded(graph.node(before, operands, **attributes))
    other = graph.rounded(graph.node("Relu", [one]))
    model = graph.model(graph.rounded(graph.node("Concat", [one, other], axis=1), 0.03, 4))
    _, plan = planned(model)
    check(next(iter(plan.parts.values())))


@pytest.mark.parametrize("target", ["u55-32", "u55-64", "u55-256", "u65-256", "u65-512"])
def test_convolutions_of_other_accelerators(target: str) -> None:
    target = DEFAULT.replace("u55-128", target)
    for seed, name in enumerate(("convolution", "depthwise", "fully connected", "add")):
        graph = QuantizedGraph(seed + 50)
        _, build, _ = OPERATORS[name]
        _, plan = planned(graph.model(graph.rounded(build(graph))), target)
        check(next(iter(plan.parts.values())), target)


@pytest.mark.parametrize("operator", ["ReduceMin", "ReduceMax"])
def test_extremes_in_the_steps_of_their_operand(operator: str) -> None:
    """Nothing scales what is found: Vela gets a REDUCE_MIN wrong that only changes its shape."""
    for shape, axis in (((1, 21, 7, 9), 1), ((1, 21, 7, 9), 3), ((4, 21), 1)):
        graph = QuantizedGraph(5)
        x = graph.rounded(graph.node("Sub", [graph.input(*shape), graph.numbers(shape[-1])]), 0.2, 4)
        found = graph.node(operator, [x, graph.constant(np.array([axis]))])
        refused, plan = planned(graph.model(graph.rounded(found, 0.2, 4)))
        assert not refused.refused
        check(next(iter(plan.parts.values())))


@pytest.mark.parametrize("alone", [True, False])
def test_what_changes_nothing(alone: bool) -> None:
    """As the keys of attention are turned: what has its channels last already. Its result is its operand."""
    graph = QuantizedGraph(7)
    x = graph.input(1, 13, 3, 20)
    turned = graph.rounded_like(graph.node("Transpose", [x], perm=[0, 2, 3, 1]), x)
    model = graph.model(turned) if alone else graph.model(turned, graph.rounded_like(graph.node("Neg", [x]), x))
    found, plan = planned(model)
    assert not found.refused
    (segment,) = plan.parts.values()
    check(segment)
