"""A few cases of the symbolic suite, and how it minimises; the long runs are `python -m tests.fuzz symbolic`."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pytest

from tests.fuzz import symbolic
from tests.fuzz.forked import ending_of
from tests.fuzz.minimize import minimized


def test_random_graphs_with_symbolic_sizes_equal_onnxruntime() -> None:
    outcomes = [symbolic.case(None, seed) for seed in range(8)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert any(outcome.kind == "right" for outcome in outcomes)


def test_graphs_are_valid_and_the_same_for_the_same_seed() -> None:
    for seed in range(40):
        model, feeds = symbolic.symbolic_model(seed)
        onnx.checker.check_model(model)
        again, same = symbolic.symbolic_model(seed)
        assert again == model
        assert [list(each) for each in same] == [list(each) for each in feeds]


def test_a_wrong_number_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = symbolic._expected

    def shifted(session: Any, feeds: Any) -> Any:
        found = expected(session, feeds)
        return found and [~each if each.dtype == bool else each + 1 for each in found]

    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> graph (float[n] x) => (float[n] y) { y = Relu(x) }'
    )
    monkeypatch.setattr(symbolic, "_expected", shifted)
    monkeypatch.setattr(symbolic, "_reference", lambda model, feeds: None)
    feeds = {"x": np.ones(3, np.float32)}
    assert symbolic.judged(model, [feeds]).kind == "wrong"


def test_minimising_keeps_the_node_that_fails() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]> graph (float[n] x) => (float[n] y, float[n] z)
        { a = Relu(x) b = Exp(a) c = Sin(b) y = Neg(c) z = Abs(a) }"""
    )
    small = minimized(model, lambda smaller: any(node.op_type == "Exp" for node in smaller.graph.node))
    assert [node.op_type for node in small.graph.node] == ["Exp"]
    assert len(small.graph.output) == 1


def test_a_forked_call_says_how_it_ended() -> None:
    endings = [
        ending_of(lambda: [np.ones(2)]),
        ending_of(lambda: 1 / 0),
        ending_of(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
        ending_of(signal.pause, seconds=0.05),
    ]
    assert [each.kind for each in endings] == ["returned", "raised", "died", "too long"]
    assert endings[0].value[0].tolist() == [1, 1]
    assert endings[1].reason == "ZeroDivisionError: division by zero"
    assert endings[2].reason == f"exit code {-signal.SIGSEGV}"
