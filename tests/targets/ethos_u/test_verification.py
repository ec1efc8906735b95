"""Programs that do not compute what their graph says are noticed, and left to the processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import compiler
from targets.conformance_models import random_inputs
from targets.ethos_u import verification
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
    # The table is among the constants; all of it inverted is no sigmoid.
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
