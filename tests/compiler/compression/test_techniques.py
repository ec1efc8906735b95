"""Weight sharing, low rank, distillation and recipes on small nets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import compiler
from compiler.compression.recipe import RecipeResult, parse_recipe
from compiler.compression.weight_sharing import shared
from compiler.errors import AccuracyError, OptionError
from tests.compiler.frontends.llm.families import save_model

_X = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
_OPTIONS: dict[str, Any] = {"example_inputs": (_X,), "threads": 1, "calibration": [{"input": _X.numpy()}]}


def _net(rank: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 5)).eval()
    with torch.no_grad():
        dict(net.named_parameters())["2.weight"].copy_(torch.randn(256, rank) @ torch.randn(rank, 256) / 16)
    return net


def _run(source: object) -> np.ndarray:
    return next(iter(compiler.compile(source, threads=1).run({"input": _X.numpy()}).values()))


def test_shared_weights_make_smaller_files_of_the_same_numbers(tmp_path: Path) -> None:
    net = _net()
    result = compiler.share_weights(net, 5, max_drop=0.1, **_OPTIONS)
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Linear) and module.weight.numel() >= 4096:
                module.weight.copy_(torch.from_numpy(shared(module.weight.numpy(), 5)))
        wanted = net(_X).numpy()
    compiler.compile(result, threads=1).export(tmp_path / "shared.twm")
    loaded = compiler.load(tmp_path / "shared.twm", threads=1).run({"input": _X.numpy()})
    assert np.abs(next(iter(loaded.values())) - wanted).max() < 1e-4
    assert result.report.after.bytes < result.report.before.bytes * (6 / 32)  # biases and small weights stay


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_palettes(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    values[0, :9] = 0
    found = shared(values, bits)
    assert len(np.unique(found)) <= 1 << bits
    assert (found[0, :9] == 0).all()
    assert np.square(found - values).mean() < 8 / (1 << 2 * bits)


def test_a_recipe_with_distillation() -> None:
    net, teacher = _net(), _net()
    batches = [_X[:4], _X[4:]]
    result = compiler.compress(
        net,
        [{"prune": {"amount": 0.25, "max_drop": 0.99}}, "distill", {"share-weights": {"bits": 8}}],
        max_drop=0.5,
        prune={"finetune": lambda net: None},
        distill={"teacher": teacher, "batches": batches, "epochs": 2},
        **_OPTIONS,
    )
    assert [row.step for row in result.report.rows] == ["original", "prune", "distill", "share-weights"]
    sizes = [row.measure.bytes for row in result.report.rows]
    assert sizes[0] > sizes[1] == sizes[2] > sizes[3]
    assert _run(result).shape == (8, 5)
    assert (
        int((dict(net.named_parameters())["0.weight"].abs().sum(1) == 0).sum()) == 64
    )  # training left what was pruned


def test_recipes_that_are_refused() -> None:
    assert parse_recipe("prune -> quantize") == [("prune", {}), ("quantize", {})]
    assert parse_recipe([{"prune": {"amount": "0.25"}}]) == [("prune", {"amount": 0.25})]
    refused: list[Any] = [
        "prune -> polish",
        [],
        {"steps": []},
        [{"prune": 3}],
        [{"prune": {"amont": 0.3}}],
        [{"share-weights": {"bits": "many"}}],
        [{"quantize": {"threads": 2}}],
    ]
    for recipe in refused:
        with pytest.raises(OptionError):
            parse_recipe(recipe)
    with pytest.raises(OptionError, match="no setting 'teachers'"):
        compiler.compress(_net(), "distill", distill={"teachers": 3}, **_OPTIONS)
    with pytest.raises(AccuracyError):
        compiler.compress(_net(), [{"prune": {"amount": 0.9, "max_drop": 0.99}}], max_drop=1e-6, **_OPTIONS)


def _train(net: Any) -> None:
    """A step of training that changes nothing."""


# Of the second step, and what is said of it.
_IMPOSSIBLE: dict[str, tuple[dict[str, dict[str, Any]], str]] = {
    "amount": ({"prune": {"amount": 1.5}}, "amount=1.5"),
    "amount as text": ({"prune": {"amount": "half"}}, "amount='half' does not fit"),
    "pattern": ({"prune": {"pattern": "4:2"}}, "pattern='4:2' is not supported"),
    "criterion": ({"prune": {"criterion": "size"}}, "criterion='size'"),
    "criterion of layers": ({"prune": {"criterion": "influence"}}, "is for pattern='layers'"),
    "scope": ({"prune": {"scope": "all"}}, "scope='all'"),
    "no gradients": ({"prune": {"criterion": "gradient"}}, "needs loss="),
    "steps without training": ({"prune": {"steps": 2}}, "steps > 1 needs finetune="),
    "a search in training": ({"prune": {"amount": None, "finetune": _train}}, "searches without training"),
    "a limit": ({"prune": {"max_drop": 1.0}}, "max_drop=1.0"),
    "energy": ({"factorize": {"energy": 0}}, "energy=0"),
    "speedup": ({"factorize": {"speedup": 0.5}}, "speedup=0.5"),
    "gain": ({"factorize": {"minimum_gain": 0.5}}, "minimum_gain=0.5"),
    "bits": ({"share-weights": {"bits": 3}}, "bits=3"),
    "scheme": ({"quantize": {"scheme": "int3"}}, "scheme='int3'"),
    "method": ({"quantize": {"method": "median"}}, "named 'median'"),
    "method that the scheme leaves aside": ({"quantize": {"scheme": "float16", "method": "median"}}, "named 'median'"),
    "activations": ({"quantize": {"activations": "int4"}}, "activations='int4'"),
    "group": ({"quantize": {"scheme": "weight-int4", "group": 48}}, "group=48"),
    "scales": ({"quantize": {"scales": "float64"}}, "scales='float64'"),
    "techniques": ({"quantize": {"techniques": ["dithering"]}}, "techniques= has dithering"),
    "no batches": ({"distill": {"method": "self"}}, "needs batches="),
    "no teacher": ({"distill": {"batches": [_X]}}, "teacher="),
    "two teachers": ({"distill": {"method": "self", "teacher": _train, "batches": [_X]}}, "no teacher but the student"),
    "learning rate": ({"distill": {"teacher": _train, "batches": [_X], "learning_rate": -1}}, "learning_rate=-1"),
    "temperature": ({"distill": {"teacher": _train, "batches": [_X], "temperature": float("nan")}}, "temperature=nan"),
    "features": ({"distill": {"teacher": _train, "batches": [_X], "method": "feature"}}, "features= goes with"),
    "batches that end": ({"distill": {"teacher": _train, "batches": iter([_X])}}, "iterated only once"),
}


@pytest.mark.parametrize("name", _IMPOSSIBLE)
@pytest.mark.parametrize("in_python", [False, True])
def test_what_a_later_step_can_not_do_is_said_before_anything_runs(name: str, in_python: bool) -> None:
    def evaluate(run: Any) -> float:
        raise AssertionError("something ran")

    [(step, settings)], problem = _IMPOSSIBLE[name][0].items(), _IMPOSSIBLE[name][1]
    first = "share-weights" if step != "share-weights" else "factorize"
    recipe: list[Any] = [first, step] if in_python else [first, {step: settings}]
    extra: dict[str, Any] = {step.replace("-", "_"): settings} if in_python else {}
    with pytest.raises(OptionError, match=re.escape(problem)) as raised:
        compiler.compress(_net(), recipe, evaluate=evaluate, **_OPTIONS, **extra)
    assert step in str(raised.value)


def test_quantize_without_samples_is_said_before_anything_runs() -> None:
    def evaluate(run: Any) -> float:
        raise AssertionError("something ran")

    with pytest.raises(OptionError, match=r"step 2 of 2, quantize: static-int8 needs calibration="):
        compiler.compress(_net(), "factorize -> quantize", evaluate=evaluate, example_inputs=(_X,))


_HOSTILE = {
    "references": "a: &a [1, 1]\nb: &b [*a, *a]\ncompress: *b\n",
    "references in a setting": "compress:\n- prune: {amount: &a 0.5}\n- prune: {amount: *a}\n",
    "itself": "compress: &a [*a]\n",
    "depth": "compress: " + "[" * 600 + "]" * 600,
    "digits": "compress: [{prune: {steps: " + "9" * 5000 + "}}]\n",
    "length": "compress: [" + ",".join(["quantize"] * 20000) + "]\n",
    "no number": "compress: [{prune: {amount: [1, 2]}}]\n",
    "code": "compress: !!python/object/apply:os.getcwd []\n",
    "no text": "compress: [\x00]\n",
    "nothing": "",
    "a key twice": "compress: [prune]\ncompress: [quantize]\n",
    "a setting twice": "compress:\n- prune: {amount: 0.5, 'amount': 0.1}\n",
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_files_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(_HOSTILE[name])
    with pytest.raises(OptionError) as raised:
        parse_recipe(path)
    assert len(str(raised.value)) < 1000


def test_a_key_that_is_there_twice_is_shown_by_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("compress:\n- prune:\n    amount: 0.5\n    steps: 2\n    amount: 0.1\n- quantize\n- quantize\n")
    with pytest.raises(OptionError, match=r"'amount' in line 3 and again in line 5"):
        parse_recipe(path)


def test_what_was_reached_before_a_step_failed() -> None:
    calls = 0

    def evaluate(run: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > 3:  # of the model, twice, and of the first step
            raise KeyError("labels")
        run({"input": _X.numpy()})
        return 1.0

    with pytest.raises(OptionError, match=r"step 2 of 2, factorize: evaluate= failed: KeyError: 'labels'") as raised:
        compiler.compress(_net(), "share-weights -> factorize", evaluate=evaluate, **_OPTIONS)
    reached = raised.value.reached
    assert isinstance(reached, RecipeResult)
    assert [row.step for row in reached.report.rows] == ["original", "share-weights"]
    assert np.isfinite(_run(reached)).all()


def test_only_layers_that_get_faster_are_factorized() -> None:
    net = _net(rank=8)
    result = compiler.factorize(net, 0.999, max_drop=0.2, **_OPTIONS)
    assert [bool(layer.change) for layer in result.report.layers] == [False, True, False]
    with torch.no_grad():
        assert np.abs(_run(result) - net(_X).numpy()).max() < 1e-4


def test_language_models_are_rounded_as_they_are_compiled(tmp_path: Path) -> None:
    save_model("llama", tmp_path, num_hidden_layers=1)
    with pytest.raises(OptionError, match="rounded as it is compiled") as error:
        compiler.share_weights(tmp_path, 5)
    assert "--precision int8" in str(error.value.hint)
