"""`tensorwright tune` and `tensorwright records`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.cli.arguments import parse_duration
from compiler.errors import OptionError
from compiler.records.folders import shipped_folder
from tests.compiler.cli.running import Run
from tests.compiler.tuning.comparisons import few_turns  # noqa: F401  (fixture)
from tests.fuzz.tuning import convolution_model


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2 min", 120), ("1h", 3600)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "fast", "-5", "0", "3d", "1e3"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(OptionError, match="not a duration"):
        parse_duration(text)


def test_every_target_that_has_records_is_shown(tensorwright: Run) -> None:
    shown = tensorwright("records", str(shipped_folder()))
    assert shown.code == 0, shown.err
    for text in ("znver5, 2 cores", "cortex-a76, 4 cores", "ethos-u55-128", "sm_90, 132 multiprocessors"):
        assert text in shown.out


def test_tune_then_look_at_the_records(tensorwright: Run, tmp_path: Path) -> None:
    model, records, page = tmp_path / "model.onnx", tmp_path / "logs", tmp_path / "page.html"
    model.write_bytes(convolution_model())
    options = ("--threads", "1", "--timing", "serial", "--cost-model", "roofline")
    done = tensorwright("tune", str(model), "--trials", "5", "--records", str(records), "--report", str(page), *options)
    assert done.code == 0, done.err
    assert "kernels of a run" in done.out
    assert "conv-direct" in done.out
    assert "fused_" not in done.out  # layers have the names of the model's nodes
    assert "5 trials" in done.err or "5 in" in done.out
    assert "Latency against trials" in page.read_text()

    shown = tensorwright("records", str(records), "--json")
    found = json.loads(shown.out)
    lines = {line["rule"]: line for line in found["rules"]}
    assert [(line["measure"], line["models"]) for line in found["targets"]] == [("timed", 1)]
    assert set(lines) == {"conv-direct", "conv-winograd"}  # the ways to compute it
    assert sum(line["trials"] for line in lines.values()) == 5
    assert lines["conv-direct"]["tasks"] == 1

    best = tmp_path / "best.jsonl"
    assert tensorwright("records", str(records), "--best", "--output", str(best)).code == 0
    written = [json.loads(text) for text in best.read_text().splitlines()]
    kinds = [line["kind"] for line in written if not line.get("in_model")]
    assert kinds[0] == "target"
    assert kinds[-1] == "model"
    assert set(kinds[1:-1]) == {"trial"}
    assert len(kinds) <= 2 + 2 * sum(line["tasks"] for line in lines.values())  # a default and a best of each


def test_a_wrong_device_is_a_usage_error(tensorwright: Run, tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(convolution_model())
    done = tensorwright("tune", str(model), "--device", "nowhere", "--records", str(tmp_path))
    assert done.code == 2
    assert "HOST:PORT" in done.err
