from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import compiler
from compiler.errors import ArtifactError, InputError, InternalError, OptionError
from compiler.profiling.bench import _as_error, _save_inputs
from compiler.profiling.bench_worker import _read_input


def test_measures_in_a_process_of_its_own(module_path: Path) -> None:
    result = compiler.bench(module_path, runs=25)
    assert result.latency.runs == len(result.samples) == 25
    assert 0 < result.latency.minimum <= result.latency.p99
    assert result.threads == 1
    assert result.inputs == {"x": "float32[4, 256]"}
    assert result.file_bytes == module_path.stat().st_size
    assert result.parameter_bytes == 3 * 256 * 256 * 4
    # At most the file, the parameters once more, and 32 MiB of runtime: the compiler alone would be 250 MiB.
    assert 0 < result.peak_memory < result.file_bytes + result.parameter_bytes + (32 << 20)
    assert result.load_seconds > 0
    assert result.first_seconds > 0
    assert "samples" not in result.to_dict()


def test_a_module_in_memory_and_a_number_of_threads(module: compiler.Module) -> None:
    result = compiler.bench(module, {"x": np.ones((4, 256), np.float32)}, seconds=0.05, threads=2)
    assert result.threads == 2
    assert result.latency.runs >= 3
    assert module.threads == 1


def test_open_dimensions(open_module: compiler.Module) -> None:
    assert compiler.bench(open_module, runs=2, sizes={"batch": 9}).inputs == {"x": "float32[9, 64]"}


def test_batches(open_module: compiler.Module, module: compiler.Module) -> None:
    one = compiler.bench(open_module, runs=2)
    assert (one.inputs, one.batch) == ({"x": "float32[1, 64]"}, 1)
    eight = compiler.bench(open_module, runs=2, batch=8)
    assert (eight.inputs, eight.batch) == ({"x": "float32[8, 64]"}, 8)
    assert eight.items_per_second == 8 * eight.latency.throughput
    with pytest.raises(OptionError, match="batch size is fixed"):
        compiler.bench(module, batch=8)


def test_streams(open_module: compiler.Module) -> None:
    two = compiler.bench(open_module, runs=40, streams=2, threads=1, batch=3)
    assert (two.streams, two.threads, two.latency.runs) == (2, 1, 40)
    assert two.items_per_second == pytest.approx(3 * 40 / two.elapsed)
    best = compiler.bench(open_module, runs=10, hint="throughput", threads=3)
    assert [(each.streams, each.threads) for each in best.sweep] == [(1, 3), (2, 1), (3, 1)]
    assert best.runs_per_second == pytest.approx(max(each.runs_per_second for each in best.sweep))
    assert best.streams in (1, 2, 3)
    with pytest.raises(OptionError, match="hint='speed'"):
        compiler.bench(open_module, hint="speed")  # type: ignore[arg-type]


def test_bad_arguments(module: compiler.Module, module_path: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        compiler.bench(module, runs=0)
    with pytest.raises(OptionError):
        compiler.bench(module, seconds=0)
    with pytest.raises(InputError, match="no input is named 'z'"):
        compiler.bench(module, {"z": np.ones(2)})
    broken = tmp_path / "broken.twm"
    broken.write_bytes(module_path.read_bytes()[:-100])
    with pytest.raises(ArtifactError):
        compiler.bench(broken)


def test_errors_of_the_worker_keep_their_class() -> None:
    error = _as_error({"class": "InputError", "message": "wrong shape", "hint": "mend it"})
    assert isinstance(error, InputError)
    assert (error.message, error.hint) == ("wrong shape", "mend it")
    assert isinstance(_as_error({"class": "Unheard", "message": "x", "hint": None}), InternalError)


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.bool_, ml_dtypes.bfloat16])
def test_inputs_reach_the_worker_unchanged(dtype: type, tmp_path: Path) -> None:
    array: np.ndarray = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    (entry,) = _save_inputs({"x": array.T}, tmp_path)
    restored = _read_input(entry)
    assert restored.dtype == array.dtype
    np.testing.assert_array_equal(restored, array.T)


def test_scalars_keep_their_shape(tmp_path: Path) -> None:
    (entry,) = _save_inputs({"x": np.array(3.0, np.float32)}, tmp_path)
    assert _read_input(entry).shape == ()
