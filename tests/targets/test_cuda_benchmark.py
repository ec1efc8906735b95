"""The door to a device, as far as it goes without one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import compiler
import targets
from benchmarks import _contestant, cuda
from benchmarks._cuda_device import HEADER, DeviceRow, difference, entries, require_device, row
from benchmarks._models import Task
from benchmarks._race import Result
from compiler.errors import IncompatibleArtifactError
from targets.cuda import device as cuda_device
from targets.cuda.target import CudaTarget
from tests.targets.cuda_models import chain

without_device = pytest.mark.skipif(bool(cuda_device.compute_capabilities()), reason="this machine has a device")


def target_of(name: str) -> CudaTarget:
    found = targets.get(name)
    assert isinstance(found, CudaTarget)
    return found


@without_device
def test_without_a_device_the_command_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["resnet18", "--device", "--target", "h100"]) == 2
    said = capsys.readouterr().err
    assert "compute capability 9.0" in said
    assert "--device" in said


@pytest.mark.parametrize(
    ("arguments", "said"), [(["no-such-model"], "no-such-model"), (["pnet", "--target", "host"], "host is not a CUDA")]
)
def test_what_is_not_there_is_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_kernels_are_examined_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert cuda.main(["pnet", "--no-nvcc"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| pnet | ")
    assert last.count("|") == cuda._HEADER.count("|")


def test_a_simulated_target_is_no_device() -> None:
    with pytest.raises(IncompatibleArtifactError, match="simulated"):
        require_device(target_of("cuda-simulated"))


def _task(folder: Path) -> Task:
    import onnx

    onnx.save(chain(6, 11), str(folder / "m.onnx"))
    np.savez(folder / "m.npz", x=np.random.default_rng(0).standard_normal((6, 11)).astype(np.float32))
    return Task("m", folder / "m.onnx", folder / "m.npz", None, 0)


def test_numbers_are_compared_with_the_processors_module(tmp_path: Path) -> None:
    task = _task(tmp_path)
    module = compiler.compile(str(task.path), "cuda-simulated", records=False)
    assert 0 <= difference(module, task) < 1e-5
    other = tmp_path / "other.npz"
    np.savez(other, x=np.zeros((6, 11), np.float32))

    class Wrong:
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: 1.5 * value for name, value in module.run(inputs).items()}

    assert difference(Wrong(), dataclasses.replace(task, arrays=other)) == pytest.approx(0.5, rel=1e-3)


def test_a_row_compares_with_the_faster_peer() -> None:
    times = {"tensorwright": 2e-3, "onnxruntime-cuda": 5e-3, "torch-compile": 3e-3}
    results = [Result(name, "", 0.0, [], [[(each, each)]]) for name, each in times.items()]
    made = row("resnet18", 1e-6, results)
    assert made.ratio == pytest.approx(1.5)
    assert made.cells() == ["resnet18", "2.000", "3.000", "5.000", "1.50", "1.0e-06", "yes"]
    assert len(made.cells()) == len(HEADER)
    assert not row("resnet18", 0.1, results).is_right
    assert DeviceRow("resnet18", 0.0, 1e-4).cells()[1:5] == ["-"] * 4


def test_torch_compile_takes_part_where_the_model_is_pytorchs(tmp_path: Path) -> None:
    task = _task(tmp_path)
    assert next(each.contestant for each in entries("pnet", task.path, task)) == "tensorwright"
    assert "torch-compile" in [each.contestant for each in entries("resnet18", task.path, task)]
    assert "torch-compile" not in [each.contestant for each in entries("silero-vad", task.path, task)]


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it has one")
def test_onnx_runtime_never_falls_back_to_the_processor(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="onnxruntime-gpu"):
        _contestant.onnxruntime_cuda(str(_task(tmp_path).path), [{}], 1, "f32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it finds one")
def test_torch_never_falls_back_to_the_processor() -> None:
    with pytest.raises(RuntimeError, match="no CUDA device"):
        _contestant.torch_compile("resnet18", [{}], 1, "f32")
