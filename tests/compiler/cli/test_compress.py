"""`tensorwright compress`: a model, samples and a recipe in, a module and a report out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import compiler
from tests.compiler.building import perceptron, write
from tests.compiler.cli.running import Run

_RECIPE = """
compress:
  - prune: {pattern: channels, amount: 0.25, max_drop: 0.9}
  - share-weights: {bits: 7}
  - quantize: {method: min-max}
"""


def test_a_recipe_in_a_file(tensorwright: Run, tmp_path: Path) -> None:
    """It prints the table, and writes the page and a smaller module that runs."""
    model = write(perceptron(batch=4, width=128, layers=3), tmp_path / "net.onnx")
    values = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=values)
    (tmp_path / "recipe.yaml").write_text(_RECIPE)
    output, report = tmp_path / "out.twm", tmp_path / "page.html"
    common = ("-s", tmp_path / "a.npz", "-o", output, "--max-drop", 0.9, "--threads", 1)
    result = tensorwright("compress", model, "-r", tmp_path / "recipe.yaml", "--report", report, *common)
    assert result.code == 0, result.err
    rows = [line.split()[0] for line in result.out.splitlines()]
    assert rows[:5] == ["step", "original", "prune", "share-weights", "quantize"]
    page = report.read_text()
    assert "Pareto front" in page
    assert all(each in page for each in ("After each step", "share-weights", "Compression for host"))
    plain = compiler.compile(model, threads=1)
    plain.export(tmp_path / "plain.twm")
    assert output.stat().st_size < 0.6 * (tmp_path / "plain.twm").stat().st_size
    got = compiler.load(output, threads=1).run({"x": values})["y"]
    exact = plain.run({"x": values})["y"]
    assert (got * exact).sum() > 0.1 * np.linalg.norm(got) * np.linalg.norm(exact)


def test_a_recipe_in_a_line(tensorwright: Run, tmp_path: Path) -> None:
    model = write(perceptron(batch=4, width=64, layers=2), tmp_path / "net.onnx")
    output = tmp_path / "out.twm"
    recipe = "factorize -> share-weights"
    result = tensorwright("compress", model, "-r", recipe, "-o", output, "--threads", 1, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    rows = found["rows"]
    # Weights of full rank have no factors that are faster: the step is skipped with a line, and the recipe goes on.
    assert found["skipped"][0]["step"] == "factorize"
    assert "times faster in factors" in found["skipped"][0]["reason"]
    assert "skipped factorize: none of 2 layers is" in result.err
    assert [row["step"] for row in rows] == ["original", "share-weights"]
    assert rows[1]["measure"]["bytes"] < rows[0]["measure"]["bytes"] / 4


def test_recipes_at_fault(tensorwright: Run, tmp_path: Path) -> None:
    model = write(perceptron(batch=4, width=16, layers=1), tmp_path / "net.onnx")
    (tmp_path / "bad.yaml").write_text("compress: [prune: {amount: much}]")
    refused = {
        "prune -> polish": "no technique is named 'polish'",
        str(tmp_path / "none.yaml"): "cannot be read",
        str(tmp_path / "bad.yaml"): "amount='much' does not fit",
        "distill": "needs batches=",
        "quantize": "needs --samples",
    }
    for recipe, problem in refused.items():
        result = tensorwright("compress", model, "-r", recipe, "-o", tmp_path / "out.twm", "--threads", 1)
        assert result.code == 2
        assert problem in result.err
