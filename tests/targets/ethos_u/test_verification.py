"""Programs that do not compute what their graph says are noticed, and left to the processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import compiler
from targets.conformance.models import random_inputs
from targets.ethos_u import verification
from targets.ethos_u.partition import _agreed
from targets.ethos_u.settings import VelaOptions
from targets.ethos_u.vela import compile_graph
from tests.targets.ethos_u.checking import DEFAULT, planned, target_named
from tests.targets.ethos_u.graphs import QuantizedGraph


def two_steps() -> Any:
    graph = QuantizedGraph(5)
    x = graph.rounded(graph.node("Conv", [graph.input(1, 4, 5, 5), graph.weight((4, 4, 3, 3), 0)]))
    return graph.model(graph.rounded(graph.node("Sigmoid", [x])))


def test_a_changed_table_is_noticed() -> None:
    _, plan = planned(two_steps())
    (part,) = plan.parts.values()
    program = compile_graph(part.tosa, target_named().accelerator).program
    assert verification.agrees(part, program)
    # The table is among the constants; all of it inverted is not a sigmoid.
    changed = bytes(255 - each for each in program.weights[-256:])
    tables = program.weights.replace(program.weights[-256:], changed)
    assert not verification.agrees(part, replace(program, weights=tables))


def test_what_vela_got_wrong_is_computed_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two steps, by a check that finds fault with every program that has both."""
    model = two_steps()
    wanted = compiler.compile(model, DEFAULT, threads=1, records=False)

    def judged(part: Any, program: Any) -> bool:
        return len(part.steps) < 2

    monkeypatch.setattr("targets.ethos_u.partition.agrees", judged)
    monkeypatch.setattr(verification, "agrees", judged)
    module = compiler.compile(model, DEFAULT, threads=1, records=False)
    report: Any = module.manifest.target.details["partition"]
    assert [entry["reason"] for entry in report["refused"]] == [verification.REASON]
    assert len(report["claimed"]) == 1
    inputs = random_inputs(model)
    (actual,), (expected,) = (each.run(inputs).values() for each in (module, wanted))
    assert abs(actual - expected).max() < 0.11


def test_a_segment_is_written_otherwise_before_a_step_is_refused() -> None:
    """The unit behind a channel shuffle of ShuffleNet: Vela loses what goes past the convolutions."""
    graph, scale, zero = QuantizedGraph(3), 0.05, 4

    def moved(operator: str, inputs: list[str], **attributes: Any) -> str:
        return graph.rounded(graph.node(operator, inputs, **attributes), scale, zero)

    def part(name: str, begin: int, end: int) -> str:
        return moved("Slice", [name, *(graph.constant(np.array([each])) for each in (begin, end, 1))])

    x = graph.rounded(graph.input(1, 24, 2, 12, 12), scale, zero)
    shuffled = moved("Reshape", [x, graph.constant(np.array([1, 48, 12, 12]))])
    y, past = part(shuffled, 0, 24), part(shuffled, 24, 48)
    y = graph.rounded(graph.node("Conv", [y, graph.weight((24, 24, 1, 1), 0)]))
    y = graph.rounded(graph.node("Conv", [y, graph.weight((24, 1, 3, 3), 0)], group=24, pads=[1] * 4))
    y = graph.rounded(graph.node("Conv", [y, graph.weight((24, 24, 1, 1), 0)]))
    joined = graph.rounded(graph.node("Concat", [past, y], axis=1), 0.048, zero)  # neither's scale
    _, plan = planned(graph.model(joined))
    (segment,) = plan.parts.values()
    accelerator = target_named().accelerator
    compiled = compile_graph(segment.tosa, accelerator)
    assert not verification.agrees(segment, compiled.program)  # else nothing is left to avoid
    agreed = _agreed(segment, compiled, accelerator, VelaOptions())
    assert agreed is not None
    assert agreed[0].steps == segment.steps
    assert verification.agrees(agreed[0], agreed[1].program)
