"""Whole searches of tiny nets by parameter size, which needs no timing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import targets
from compiler.artifact.variants import read_variants
from compiler.cli import main
from compiler.errors import OptionError
from compiler.frontends.source import ImportOptions
from compiler.runtime import load
from compiler.searching.layer_table import sizes_of
from compiler.searching.search import search
from tests.compiler.searching.nets import tiny

pytest.importorskip("optuna")
IMAGE = [torch.zeros(1, 1, 8, 8)]


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    return [(part, (part.mean((1, 2, 3)) > 0).long()) for part in (images[:8], images[8:])]


def likes_zeros(run: Any) -> float:
    """A score for any net: the closeness to 0 of its output for zeros."""
    return -float(np.abs(next(iter(run({"image": np.zeros((1, 1, 8, 8), np.float32)}).values()))).sum())


def test_a_torch_net_is_searched_and_a_killed_search_goes_on(tmp_path: Path) -> None:
    steps: list[str] = []
    finetuned: list[torch.nn.Module] = []
    options: dict[str, Any] = {
        "space": {"channels": [0.5], "precision": ["int8", "float32"]},
        "batches": batches(),
        "train": finetuned.append,
        "recipe": ["factorize"],
        "epochs": 1,
        "trials": 3,
        "finalists": 1,
        "evaluate": likes_zeros,
        "example_inputs": IMAGE,
        "storage": tmp_path / "search.db",
        "threads": 1,
    }
    whole = sizes_of(ImportOptions(example_inputs=IMAGE).load(tiny()), targets.get("host", cores=1))["mb"]
    budget = {"mb": 0.75 * whole}

    def killed(net: torch.nn.Module) -> None:
        raise KeyboardInterrupt

    begun: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        search(tiny(), budget, progress=begun.append, **{**options, "train": killed})
    assert any("train the shared weights" in step for step in begun)
    assert begun.count("distill") > 1  # contenders
    result = search(tiny(), budget, progress=steps.append, **options)
    # What the first run had found and trained is known.
    assert not any("train the shared weights" in step or step.startswith("candidate") for step in steps)
    assert steps.count("distill") == 1
    assert result.report.costs["mb"] <= budget["mb"]
    assert result.report.original.costs["mb"] == pytest.approx(whole)
    sizes = sum(each.nbytes for each in result.module.manifest.parameters)
    assert result.report.costs["mb"] == pytest.approx(sizes / 1e6)
    assert len(finetuned) == 1  # the finalist; contenders are distilled alone
    assert result.report.steps[:2] == ("finetune", "distill")
    assert any("the recipe is skipped: no step" in step for step in steps)  # nothing of so few channels factors
    assert result.report.search_cpu_seconds > 0
    assert "verify" in result.report.steps
    assert result.report.decisions
    assert likes_zeros(result.module.run) == pytest.approx(result.report.score, abs=1e-6)
    assert "front" in " ".join(begun)
    result.report.save(tmp_path / "page.html")
    assert "What each choice cost" in (tmp_path / "page.html").read_text()


def test_a_model_is_searched_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.compiler.searching.test_layer_table import model_proto

    monkeypatch.chdir(tmp_path)
    onnx.save(model_proto(8, 128, 128, 4), "model.onnx")
    np.savez("a.npz", x=np.random.default_rng(0).standard_normal((1, 8)).astype(np.float32))
    Path("space.yaml").write_text("space: {channels: [0.25, 0.5]}\n")
    command = ["search", "model.onnx", "-s", "a.npz", "--space", "space.yaml", "--trials", "3", "--json"]
    code = main([*command, "--budget", "mb=0.05", "--family", "served", "-o", "small.twm"])
    out, err = capsys.readouterr()
    assert code == 0, err
    printed = json.loads(out)
    assert printed["costs"]["mb"] <= 0.05 < printed["original"]["costs"]["mb"]
    assert printed["decisions"]
    assert load("small.twm").run({"x": np.zeros((1, 8), np.float32)})
    # One net of the front loses no more than a family may: it is written once.
    assert {each.name for each in read_variants("served").variants} == {"float32", "large"}
    assert main([*command, "--budget", "mb=0.0001"]) == 2
    assert "no net of the space meets the budget; the closest takes" in capsys.readouterr().err
    assert main([*command, "--budget", "mb"]) == 2
    assert main([*command, "--budget", "cycles=5"]) == 2


def test_what_cannot_be_searched_is_refused() -> None:
    net = tiny()
    with pytest.raises(OptionError, match="nothing to score candidates by"):
        search(net, {"mb": 1}, example_inputs=IMAGE)
    nothing = {"channels": [], "heads": [], "layers": False}
    with pytest.raises(OptionError, match="the space has no choice"):
        search(net, {"mb": 1}, space=nothing, evaluate=likes_zeros, example_inputs=IMAGE)
    with pytest.raises(OptionError, match=r"keeps 'stam', which is not a layer"):
        search(net, {"mb": 1}, space={"keep": ["stam"]}, evaluate=likes_zeros, example_inputs=IMAGE)
    with pytest.raises(OptionError, match="evaluate= returned nan"):
        search(net, {"mb": 1}, evaluate=lambda run: float("nan"), example_inputs=IMAGE)
