from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compiler
from compiler.errors import InputError, OptionError, StorageError
from compiler.profiling.measured import Profile
from compiler.profiling.save import chrome_trace
from compiler.support.balance import balance, task_counts
from tests.compiler.building import perceptron


@pytest.fixture(scope="module")
def profile(module: compiler.Module) -> Profile:
    return compiler.profile(module, runs=30)


def test_kernels_and_their_arithmetic_are_found(profile: Profile) -> None:
    products = [kernel for kernel in profile.kernels if kernel.kind == "matmul"]
    assert sum(kernel.calls for kernel in products) == 3
    # 3 products of 4x256 by 256x256, two operations a step; the ReLUs may be fused in (4 x 256 more each).
    exact = 3 * 2 * 4 * 256 * 256
    counted = sum(kernel.operations or 0 for kernel in products)
    assert exact <= counted <= exact + 3 * 4 * 256
    assert all(kernel.rate is not None and kernel.rate > 0 for kernel in products)


def test_tasks_of_each_kernel_for_the_threads_of_the_run() -> None:
    module = compiler.compile(perceptron(batch="batch", width=256), target="host:8", threads=2)
    profile = compiler.profile(module, runs=2, sizes={"batch": 64})
    products = [kernel for kernel in profile.kernels if kernel.kind == "matmul"]
    entries = {entry.kernel: entry for entry in module.manifest.kernels}
    for kernel in products:
        entry = entries[kernel.name]
        assert entry.tasks
        assert kernel.tasks == task_counts(entry.tasks, dict.fromkeys(entry.symbols, 64))
        assert kernel.balance == (None if kernel.tasks is None else balance(kernel.tasks, 2))


def test_tasks_of_static_sizes_are_numbers() -> None:
    module = compiler.compile(perceptron(batch=64, width=256), target="host:8", threads=2)
    profile = compiler.profile(module, runs=2)
    assert all(kernel.tasks for kernel in profile.kernels if kernel.kind == "matmul")
    for index, call in enumerate(profile.calls):
        works = [each for each in profile.thread_times if each.call == index]
        if call.kind == "matmul":  # one thread may have taken both parts of the loop
            assert sum(each.parts for each in works) == 2
            assert all(
                call.start <= each.start <= each.start + each.duration <= call.start + call.duration + 1e-9
                for each in works
            )
    tracks = {event["tid"] for event in chrome_trace(profile)["traceEvents"] if event["ph"] == "X"}
    assert tracks == {1, *(2 + each.thread for each in profile.thread_times)}
    assert all(kernel.tasks is None for kernel in profile.kernels if kernel.rule is None)


def test_times_add_up(profile: Profile) -> None:
    assert profile.tracked > 0
    assert sum(kernel.share for kernel in profile.kernels) <= 1 + 1e-9
    assert sum(profile.seconds_by_kind().values()) == pytest.approx(profile.tracked)
    assert [kernel.seconds for kernel in profile.kernels] == sorted(
        (kernel.seconds for kernel in profile.kernels), reverse=True
    )


def test_the_cost_of_watching_is_known(profile: Profile) -> None:
    """Its subtraction is tested on simulated clocks in test_instrument.py."""
    assert profile.crossing > 0


def test_runs_are_as_many_as_asked_for(profile: Profile) -> None:
    assert profile.latency.runs == profile.watched.runs == 30
    assert len(profile.samples) == 30


def test_profiling_leaves_the_module_as_it_was(module: compiler.Module) -> None:
    inputs = {"x": np.ones((4, 256), np.float32)}
    before = module.run(inputs)["y"]
    compiler.profile(module, inputs, runs=2)
    np.testing.assert_array_equal(module.run(inputs)["y"], before)


def test_open_dimensions_take_the_sizes_given(open_module: compiler.Module) -> None:
    profile = compiler.profile(open_module, runs=2, sizes={"batch": 7})
    assert profile.inputs == {"x": "float32[7, 64]"}
    products = [kernel for kernel in profile.kernels if kernel.kind == "matmul"]
    exact = 3 * 2 * 7 * 64 * 64
    assert exact <= sum(kernel.operations or 0 for kernel in products) <= exact + 3 * 7 * 64


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"inputs": {"z": np.ones(3)}}, InputError),
        ({"inputs": {"x": np.ones((4, 255), np.float32)}}, InputError),
        ({"sizes": {"batch": 3}}, OptionError),
        ({"runs": 0}, OptionError),
    ],
)
def test_bad_arguments(module: compiler.Module, arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        compiler.profile(module, **arguments)


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        compiler.profile(tmp_path / "missing.twm")
    with pytest.raises(OptionError, match="compile it first"):
        compiler.profile(object())


def test_trace_follows_the_trace_event_format(profile: Profile) -> None:
    trace = json.loads(json.dumps(chrome_trace(profile), allow_nan=False))
    complete = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    metadata = [event for event in trace["traceEvents"] if event["ph"] == "M"]
    assert len(complete) == len(profile.calls) + len(profile.thread_times)
    assert {event["name"] for event in metadata} == {"process_name", "thread_name"}
    for event in complete:
        assert isinstance(event["name"], str)
        assert isinstance(event["cat"], str)
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        assert {"pid", "tid", "args"} <= set(event)
    # Calls of one thread at one depth follow one another; times are rounded to 0.1 ns.
    for earlier, later in itertools.pairwise(complete[: len(profile.calls)]):
        assert later["ts"] >= earlier["ts"] + earlier["dur"] - 2e-4
    # What is traced is a run: it ends about when a run ends.
    assert complete[-1]["ts"] + complete[-1]["dur"] <= 3 * profile.watched.maximum * 1e6


def test_saved_files(profile: Profile, tmp_path: Path) -> None:
    paths = profile.save(tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(
        path.name for path in paths.values()
    )
    saved = json.loads(paths["profile"].read_text())
    assert [kernel["name"] for kernel in saved["kernels"]] == [kernel.name for kernel in profile.kernels]
    assert json.loads(paths["trace"].read_text())["traceEvents"]
    assert profile.kernels[0].name in paths["page"].read_text()


def test_a_file_in_the_folders_place_is_an_error(profile: Profile, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made"):
        profile.save(tmp_path / "file" / "profile")


def test_rows_in_a_notebook_add_up_to_the_run(profile: Profile) -> None:
    layers = tuple(replace(each, seconds=each.seconds / 30) for each in profile.layers for _ in range(30))
    found = replace(profile, layers=layers)
    assert len(layers) > 20
    shares = [float(each) for each in re.findall(r">([0-9.]+) %</td></tr>", found._repr_html_())]
    assert len(shares) == 20 + 3  # the rest, what lies outside, and the whole
    assert sum(shares[:-1]) == pytest.approx(100, abs=1.5)  # each is rounded to a tenth
    assert shares[-1] == pytest.approx(100)


def test_the_page_has_a_roofline_details_and_another_profile(profile: Profile, tmp_path: Path) -> None:
    assert profile.roofline is not None
    assert profile.roofline.peak > 0
    other = profile.to_dict()
    for each in other["layers"]:
        each["seconds"] *= 2
    page = profile.save(tmp_path, other)["page"].read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])  # type: ignore[index]
    (roofline,) = [each for each in data["charts"] if each.get("log")]
    assert len(roofline["series"][0]["points"]) == len(roofline["labels"]) >= 1
    *_, layers, beside = [each for each in data["charts"] if each["kind"] == "table"]
    assert {name for name, _ in layers["rows"][0]["details"]} >= {"computes", "tensors", "tasks", "least time"}
    ratios = [each["ratio"] for each in beside["rows"] if each["ratio"] is not None]
    assert ratios == pytest.approx([2.0] * len(ratios))
    assert ratios
