"""Bundles of CUDA modules, run end to end on the stand-in for NVIDIA's driver, in a bare root folder."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compiler
import targets
from compiler.artifact import read_artifact
from compiler.device.bundle import write_bundle
from compiler.device.push import measure, push
from compiler.device.static_program import write_static_program
from compiler.errors import IncompatibleArtifactError, OptionError
from compiler.records.records import read
from compiler.tuning.measuring.pool import MeasurementPool
from targets.cuda.target import CudaTarget
from tests.compiler.device.servers import device_server
from tests.compiler.tuning import stand_in_builder
from tests.targets import cuda_stand_in as stand_in
from tests.targets.cuda.test_target import needs_nvcc
from tests.targets.cuda_models import chain
from tests.targets.cuda_stand_in.machine import Machine, make_machine, moved_away
from tests.targets.test_cuda_options import expected_of, perceptron

KEEPS_REFERENCES = True

pytestmark = [
    needs_nvcc,
    pytest.mark.skipif(stand_in.cuda_headers() is None, reason="nvidia-cuda-runtime is not installed"),
]
_ROWS = 2
_TIMES = {"ms", "device_ms", "host_ms", "graph_ms", "graph_host_ms"}


@pytest.fixture(scope="module")
def target() -> CudaTarget:
    found = targets.get("h100")
    assert isinstance(found, CudaTarget)
    return found


@pytest.fixture(scope="module")
def net(target: CudaTarget, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three products with a softmax after each; what lies between them is recorded as a CUDA graph."""
    path = tmp_path_factory.mktemp("net") / "net.twm"
    compiler.compile(perceptron(_ROWS)[0], dataclasses.replace(target, captures_graphs=True), records=False).export(
        path
    )
    return path


@pytest.fixture(scope="module")
def machine(net: Path, target: CudaTarget, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    root = tmp_path_factory.mktemp("machine")
    artifact = read_artifact(net)
    made = write_bundle(artifact, target, root / "bundle", file=net)
    libraries = {"libtvm_runtime_cuda.so", stand_in.RUNTIME, "libtvm_runtime.so", "libtvm_ffi.so", "libtensorwright.so"}
    assert {Path(name).name for name in made.files if name.startswith("lib/")} == libraries
    assert "NVIDIA" in (root / "bundle" / "licenses" / "nvidia-cuda-runtime" / "LICENSE").read_text()
    machine = make_machine(root, target.compiler(), root / "bundle" / "lib")
    machine.add_kernels(bytes(artifact.library), target.compiler())
    return machine


def error(machine: Machine, **settings: object) -> str:
    """The runner's message where the module cannot run."""
    done = machine.run("bundle/bin/tensorwright-run", machine.path("bundle/model.twm"), "--verify", **settings)
    assert done.returncode == 1
    return done.stderr


def test_a_bundle_runs_verifies_and_times_itself(machine: Machine) -> None:
    log = machine.root / "log"
    arguments = ["--verify", "--runs", "1", "--graph", "--kernels", "--json"]
    runner = "bundle/bin/tensorwright-run", machine.path("bundle/model.twm")
    done = machine.run(*runner, *arguments, LOG=machine.path("log"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["device"] == "stand-in"
    assert said["difference"] < 1e-5
    assert set(said) > _TIMES
    assert {node for kernel in said["kernels"] for node in kernel["nodes"]} >= {"p0", "s2"}
    assert all(said[each]["runs"] == 1 and said[each]["p99"] >= said[each]["p50"] > 0 for each in _TIMES)
    lines = log.read_text().splitlines()
    # Parameters once: three of them; the first copies of the input are for --verify and for the run.
    assert [each for each in lines[:4] if each.startswith("copy in")] == lines[:4]
    assert sum(each == f"copy in {24 * 40 * 4}" for each in lines) == 1
    assert "graph" in lines
    assert sum(each.startswith("capture") for each in lines) >= 2  # TVM's, of what lies between, and the whole run's


def test_results_are_right_on_other_inputs(machine: Machine) -> None:
    x = np.random.default_rng(1).standard_normal((_ROWS, 24)).astype(np.float32)
    save_file({"x": x}, machine.root / "in.safetensors")
    runner = "bundle/bin/tensorwright-run", machine.path("bundle/model.twm")
    paths = "--inputs", machine.path("in.safetensors"), "--outputs", machine.path("out.safetensors")
    done = machine.run(*runner, *paths)
    assert done.returncode == 0, done.stderr
    (found,) = load_file(machine.root / "out.safetensors").values()
    np.testing.assert_allclose(found, expected_of(x, perceptron(_ROWS)[1]), rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_one_clear_error(machine: Machine) -> None:
    assert "NVIDIA's driver is too old: it supports CUDA 12.8, and CUDA 13.0 is needed" in error(machine, DRIVER=12080)
    assert "NVIDIA's driver finds no GPU" in error(machine, DEVICES=0)
    assert "could not be started: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)" in error(machine, INIT=803)
    other = error(machine, CAPABILITY=75)
    assert "needs an NVIDIA GPU of compute capability 9.0 or newer, and this machine has stand-in (7.5)" in other
    # A newer device translates PTX; its driver may be too old for that.
    assert "this driver cannot translate its PTX" in error(machine, CAPABILITY=100, PTX=0)
    assert "the module's parameters take 1 MiB, and stand-in has 1 MiB free of 1 MiB" in error(machine, MEMORY=4096)
    assert "not enough GPU memory: stand-in has" in error(machine, MEMORY=16_000)


def test_a_driver_or_library_that_is_not_there_is_named(machine: Machine) -> None:
    driver = machine.root / "lib" / stand_in.DRIVER
    with moved_away(driver):
        assert "NVIDIA's driver cannot be loaded: libcuda.so.1: cannot open shared object file" in error(machine)
    with moved_away(machine.root / "bundle" / "lib" / stand_in.RUNTIME):
        assert "libcudart.so.13 cannot be loaded" in error(machine)
    with moved_away(machine.root / "bundle" / "lib" / "libtvm_runtime_cuda.so"):
        assert "libtvm_runtime_cuda.so cannot be loaded" in error(machine)


def test_a_server_proves_a_module_on_its_device(machine: Machine, net: Path) -> None:
    program, folder = Path(machine.path("bundle/bin/tensorwright-server")), Path(machine.path("tmp/modules"))
    with device_server(machine.prefix, program, folder, environment=machine.environment()) as address:
        times = measure(net, address, runs=2)
        assert not (machine.root / "tmp" / "modules" / "active.twm").exists()
        result = push(net, address, runs=2)
    assert (times.device, times.graph_problem) == ("stand-in", None)
    assert set(times.times) == _TIMES
    assert all(each["p99"] >= each["p50"] > 0 for each in times.times.values())
    assert result.difference < 1e-5
    assert result.p50_milliseconds > 0
    assert (machine.root / "tmp" / "modules" / "active.twm").read_bytes() == net.read_bytes()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DEVICES": 0}, "does not run on the device at .*: NVIDIA's driver finds no GPU"),
        ({"CAPABILITY": 75}, r"it needs compute capability 9.0 or newer, but the device has stand-in \(7.5\)"),
    ],
)
def test_a_server_that_cannot_run_a_module_is_not_sent_it(
    machine: Machine, net: Path, settings: dict[str, object], said: str
) -> None:
    program, folder = Path(machine.path("bundle/bin/tensorwright-server")), Path(machine.path("tmp/none"))
    steps: list[str] = []
    with (
        device_server(machine.prefix, program, folder, environment=machine.environment(**settings)) as address,
        pytest.raises(IncompatibleArtifactError, match=said),
    ):
        push(net, address, progress=steps.append)
    assert steps == ["connect"]


def test_a_server_times_kernels_for_the_tuner(
    machine: Machine, target: CudaTarget, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, folder = Path(machine.path("bundle/bin/tensorwright-server")), Path(machine.path("tmp/tuned"))
    monkeypatch.setenv(stand_in_builder.FOLDER, str(machine.root / "kernels"))
    pool = partial(MeasurementPool, build_module=stand_in_builder.__name__, build_timeout=300.0, measure_timeout=300.0)
    monkeypatch.setattr("compiler.tuning.tune.MeasurementPool", pool)
    with device_server(machine.prefix, program, folder, environment=machine.environment()) as address:
        result = compiler.tune(chain(_ROWS, 24), target, trials=2, records=tmp_path, devices=[address])
    assert result.problems == ()
    assert result.trials == 2
    records = read(tmp_path).records
    assert {(record.status, record.device) for record in records} == {("ok", address)}
    with pytest.raises(OptionError, match=r"cannot be timed on this machine\n.*tensorwright-server"):
        compiler.tune(chain(_ROWS, 24), target, trials=2, records=tmp_path, measure="timed")
    with pytest.raises(OptionError, match="'cuda-simulated' is simulated"):
        compiler.tune(chain(_ROWS, 24), "cuda-simulated", trials=2, records=tmp_path, devices=["127.0.0.1:9"])


_PYTHON = """
import os, sys
import numpy as np
import compiler
from compiler.errors import IncompatibleArtifactError
from targets.cuda import device as cuda_device

path, inputs, outputs = sys.argv[1:]
for name, value in (("DRIVER", "12080"), ("DEVICES", "0"), ("CAPABILITY", "75")):
    os.environ["STAND_IN_" + name] = value
    cuda_device.cuda_devices.cache_clear()
    try:
        compiler.load(path)
    except IncompatibleArtifactError as error:
        print(error.message)
    del os.environ["STAND_IN_" + name]
cuda_device.cuda_devices.cache_clear()
module = compiler.load(path)
x = np.load(inputs)
module.run({"x": np.zeros_like(x)})  # whose memory on the device the next runs use again
first, second = module.run({"x": x}), module.run({"x": x})
assert all(np.array_equal(first[name], second[name]) for name in first)
np.save(outputs, *first.values())
"""


def test_python_runs_a_module_on_the_device_and_says_what_is_missing(
    machine: Machine, net: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(2).standard_normal((_ROWS, 24)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    settings = {"LD_LIBRARY_PATH": str(machine.root / "python"), "STAND_IN_KERNELS": str(machine.root / "kernels")}
    command = [sys.executable, "-c", _PYTHON, str(net), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    needs = "the module (target 'h100') needs an NVIDIA GPU of compute capability 9.0 or newer, and "
    assert done.stdout.splitlines() == [
        needs + "NVIDIA's driver is too old: it supports CUDA 12.8, and CUDA 13.0 is needed",
        needs + "NVIDIA's driver finds no GPU",
        needs + "this machine has stand-in (7.5)",
    ]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected_of(x, perceptron(_ROWS)[1]), rtol=1e-5, atol=1e-6)


def test_static_programs_and_simulated_modules_are_refused(net: Path, target: CudaTarget, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a static executable cannot load the driver of a GPU"):
        write_static_program(read_artifact(net), target, tmp_path / "program")
    simulated = tmp_path / "simulated.twm"
    compiler.compile(chain(3, 4), "cuda-simulated", records=False).export(simulated)
    with pytest.raises(OptionError, match="holds no machine code for a GPU"):
        write_bundle(read_artifact(simulated), targets.get("cuda-simulated"), tmp_path / "bundle")
