"""From a model to records, to a compilation that uses them, and further tuning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.errors import OptionError
from compiler.records.records import ChosenKernel, encode, read
from compiler.tuning.plots import tuning_page
from compiler.tuning.result import TuneResult
from compiler.tuning.state import Progress
from tests.fuzz.tuning import convolution_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records")


def tune(folder: Path, trials: int, progress: Callable[[Progress], None] | None = None) -> TuneResult:
    return compiler.tune(
        convolution_model(), trials=trials, records=folder, threads=1, timing="serial", progress=progress
    )


@pytest.fixture(scope="module")
def first(folder: Path) -> TuneResult:
    return tune(folder, 6)


def test_trials_are_made_and_recorded(first: TuneResult, folder: Path) -> None:
    assert first.trials == 6
    # That a kernel won and the model did not, by chance, is no problem of the trials.
    assert all("not significantly faster as a whole" in problem for problem in first.problems)
    (task,) = [task for task in first.tasks if task.rule == "conv-direct"]
    assert task.best_seconds is not None
    assert task.default_seconds is not None
    assert task.best_seconds <= task.default_seconds * 1.0001
    records = read(folder).records
    assert len({record.config_key for record in records}) == 6
    assert sum(record.is_default for record in records) >= 1
    assert {record.method for record in records} == {"serial"}


def test_the_next_run_goes_on(first: TuneResult, folder: Path) -> None:
    seen: list[int] = []
    again = tune(folder, 2, lambda progress: seen.append(progress.trials))
    assert again.resumed >= 6
    assert again.trials == 2
    assert max(seen) == 2
    assert len({record.config_key for record in read(folder).records}) == 8


def test_compile_uses_what_was_chosen_and_says_so(tmp_path: Path) -> None:
    model = convolution_model(kernel=1)  # which there is one way to compute: it gets all trials
    found = compiler.tune(model, trials=3, records=tmp_path, threads=1, timing="serial")
    task = next(each for each in found.tasks if each.rule == "conv-direct")
    records = [each for each in read(tmp_path).records if each.task == task.key and each.status == "ok"]
    default = next(each.config for each in records if each.is_default)
    other = next(each.config for each in records if not each.is_default)
    line = read(tmp_path).models[-1]
    choice = ChosenKernel(task=task.key, config=other, default=default)
    newer = line.model_copy(update={"choices": (choice,), "unix_time": line.unix_time + 1})
    with found.records.open("ab") as file:
        file.write(encode(newer))
    untuned = compiler.compile(model, threads=1, records=False)
    tuned = compiler.compile(model, threads=1, records=tmp_path)
    (kernel,) = [each for each in tuned.artifact.manifest.kernels if each.rule == "conv-direct"]
    assert kernel.source == "record"
    assert kernel.config == other
    assert kernel.origin == str(found.records)
    assert all(each.source != "record" and each.origin is None for each in untuned.artifact.manifest.kernels)
    x = np.random.default_rng(1).standard_normal((1, 32, 14, 14)).astype(np.float32)
    np.testing.assert_allclose(tuned.run({"x": x})["y"], untuned.run({"x": x})["y"], rtol=1e-4, atol=1e-4)


def test_records_of_one_thread_do_not_serve_two(first: TuneResult, folder: Path) -> None:
    module = compiler.compile(convolution_model(), threads=2, records=folder)
    assert all(each.source != "record" for each in module.artifact.manifest.kernels)


def test_the_page_shows_the_curves(first: TuneResult) -> None:
    page = tuning_page(first, "convolution")
    assert "Latency against time" in page
    assert "Predicted against measured" in page


def test_a_target_whose_kernels_are_not_timed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is simulated: its kernels take no time"):
        compiler.tune(convolution_model(), "cuda-simulated", records=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "at least one"),
        ({"time_budget": -1.0}, "time_budget"),
        ({"devices": ["somewhere"]}, "not understood"),
        ({"timing": "sundial"}, "sundial"),
        ({"cost_model": "tarot"}, "tarot"),
        ({"search": "dowsing"}, "dowsing"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=message):
        compiler.tune(convolution_model(), records=tmp_path, **options)  # type: ignore[arg-type]
