"""The registry of nets by family, their comparison, and the table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import benchmarks.families.__main__ as command
from benchmarks.families.check import largest_difference
from benchmarks.families.registry import Net, floats, integers, net, nets
from benchmarks.families.report import BEGIN, END, Row, print_table, summary, write_markdown

ROWS = [
    Row("graphs", "gcn", {"nodes": 7}, 2.0, {"onnxruntime": 1.0, "openvino": 3.0}, 0.5, 0.4, 0.6, 1e-7, 4.0),
    Row("graphs", "gat", {}, failure="OperatorError: no"),
]


def test_inputs_are_drawn_at_given_sizes() -> None:
    inputs = {"x": floats("nodes", 3), "edges": integers("nodes", 2, "edges")}
    entry = Net("gcn", "graphs", lambda: None, inputs, (), "dynamo", 0.0)
    found = entry.sample(0, {"nodes": 4, "edges": 100})
    assert found["x"].shape == (4, 3)
    assert found["x"].dtype == np.float32
    assert set(found["edges"].ravel().tolist()) == {0, 1, 2, 3}
    assert entry.dynamic
    assert entry.shapes == {"x": ("nodes", 3), "edges": (2, "edges")}


def test_no_two_nets_share_a_name() -> None:
    taken = next(iter(nets()))
    with pytest.raises(ValueError, match=taken):
        net(taken, {})(lambda: None)


def test_difference_is_relative_and_infinite_where_values_cannot_be_compared() -> None:
    one = np.array([1.0, 4.0], np.float32)
    assert largest_difference([one + 1], [one]) == pytest.approx(0.25)
    assert largest_difference([one], [one[None]]) == math.inf
    assert largest_difference([one], [one, one]) == math.inf
    assert largest_difference([np.array([1])], [np.array([2])]) == math.inf
    broken = np.array([np.nan, 4.0], np.float32)
    assert largest_difference([broken], [broken]) == 0.0
    assert largest_difference([one], [broken]) == math.inf


def test_table_replaces_what_lies_between_the_markers(tmp_path: Path) -> None:
    file = tmp_path / "measured.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_markdown(ROWS, 2, file)
    text = file.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| graphs | gcn | nodes 7 | 2 | 1 | 3 | 0.50 |" in text
    assert "OperatorError: no" in text
    with pytest.raises(ValueError, match="has no lines"):
        write_markdown(ROWS, 2, _with_text(tmp_path / "empty.md", "nothing"))


def test_summary_counts_failures_apart() -> None:
    assert summary(ROWS) == "2 nets, 1 rows: geometric mean 0.50, lowest 0.50, 1 below 1.0, 1 failed"
    with Console(width=200, record=True, quiet=True) as console:
        print_table(ROWS, 2, console)
    assert Row(**json.loads(json.dumps(vars(ROWS[0])))) == ROWS[0]


def _with_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_rows_of_other_nets_stay_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.json"

    def measure(*arguments: str) -> list[tuple[str, float]]:
        monkeypatch.setattr("sys.argv", ["families", *arguments, "--json", str(file)])
        assert command.main() == 0
        return [(row["net"], row["ours"]) for row in json.loads(file.read_text())]

    def rows(speed: float) -> Any:
        return lambda entry, *_: [Row(entry.family, entry.name, {}, ours=speed, ratio=1.0)]

    monkeypatch.setattr(command, "_rows", rows(1.0))
    assert measure("lstm-3x512", "gcn") == [("gcn", 1.0), ("lstm-3x512", 1.0)]
    monkeypatch.setattr(command, "_rows", rows(2.0))
    assert measure("gat", "lstm-3x512", "--keep") == [("gcn", 1.0), ("gat", 2.0), ("lstm-3x512", 2.0)]
    assert measure("gat") == [("gat", 2.0)]
