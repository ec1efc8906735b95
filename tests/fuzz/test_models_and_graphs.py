"""A few cases of the model and graph suites; the long runs are `python -m tests.fuzz models` and `... graphs`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.fuzz import graphs, models
from tests.fuzz.random_graphs import reference


def test_broken_models_give_one_error_each() -> None:
    outcomes = [models.case(None, seed) for seed in range(60)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert any(outcome.kind == "refused" for outcome in outcomes)


def test_random_graphs_equal_onnxruntime() -> None:
    outcomes = [graphs.case("host", seed) for seed in range(4)]
    assert [outcome for outcome in outcomes if outcome.kind != "right"] == []


def test_a_wrong_number_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: Any, inputs: Any) -> list[Any]:
        return [np.logical_not(each) if each.dtype == bool else each + 1 for each in reference(model, inputs)]

    monkeypatch.setattr(graphs, "reference", shifted)
    assert graphs.case("host", 0).kind == "wrong"
