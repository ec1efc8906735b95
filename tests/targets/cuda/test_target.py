"""The CUDA targets without a device: numbers by simulation, machine code by nvcc where it is installed."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import compiler
import targets
from compiler.driver.conformance import check_target
from compiler.errors import IncompatibleArtifactError, UserError
from schedules.gpu.parallel import cooperative
from schedules.ir.tir import tirx
from targets.cuda import device as cuda_device
from targets.cuda import nvcc
from targets.cuda.image import parsed_module, source_of
from targets.cuda.nvcc import OVERRIDE, find_nvcc
from targets.cuda.target import CudaTarget, presets
from targets.errors import TargetError, ToolchainMissing
from targets.extras import install_command
from targets.toolchain import find_compiler
from tests.targets.cuda_models import (
    CONVOLUTIONS,
    PRODUCTS,
    chain,
    integer_products,
    many_products,
    products,
    quantized_image_net,
    recurrent,
)

REGISTERS_OF_A_BLOCK = 1 << 16


def expected_of(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    results: Any = ReferenceEvaluator(model).run(None, inputs)
    return np.asarray(results[0])


def missing_nvcc() -> str | None:
    """Why kernels cannot be compiled here."""
    try:
        find_nvcc()
    except ToolchainMissing as error:
        return f"{error.message} ({error.hint})"
    return None


needs_nvcc = pytest.mark.skipif(missing_nvcc() is not None, reason=str(missing_nvcc()))
without_device = pytest.mark.skipif(bool(cuda_device.compute_capabilities()), reason="this machine has a device")


@pytest.mark.parametrize(
    "check",
    [
        "description",
        "functions float32",
        "products with functions float32",
        "convolutions with functions float32",
        "reductions int32",
        "dynamic batch",
        "refusal",
    ],
)
def test_the_conformance_suite_holds_by_simulation(check: str) -> None:
    find_compiler()  # of C++, which the simulation needs: outcomes hold errors as text
    (outcome,) = check_target("cuda-simulated", check)
    assert outcome.problem is None, outcome.problem


@pytest.mark.parametrize("rows", [1, 7, 33])
def test_numbers_of_odd_sizes(rows: int) -> None:
    model = chain(rows, 13)
    inputs = {"x": np.random.default_rng(rows).standard_normal((rows, 13)).astype(np.float32)}
    module = compiler.compile(model, "cuda-simulated", records=False)
    expected = expected_of(model, inputs)
    np.testing.assert_allclose(module.run(inputs)["y"], expected, rtol=2e-5, atol=2e-6)


@needs_nvcc
@without_device
def test_a_library_holds_machine_code_and_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = chain(5, 16)
    module = compiler.compile(model, "t4", records=False)
    library = bytes(module.artifact.library)
    assert struct.pack("<Q", 6) + b"fatbin" in library
    assert "__global__" in source_of(library).text
    inputs = {"x": np.ones((5, 16), np.float32)}
    expected = expected_of(model, inputs)
    np.testing.assert_allclose(module.run(inputs)["y"], expected, rtol=2e-5, atol=2e-6)
    module.export(tmp_path / "m.twm")
    with pytest.raises(IncompatibleArtifactError, match=r"NVIDIA GPU of compute capability 7\.5"):
        compiler.load(tmp_path / "m.twm")


NARROW = [("float16", "t4", 1), ("bfloat16", "a100", 1), ("bfloat16", "t4", 0), ("int8", "t4", 1)]


def model_and_inputs(dtype: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    if dtype == "int8":
        return integer_products(), {"x": random.integers(-128, 128, (128, 96)).astype(np.int8)}
    return products(dtype), {"x": random.standard_normal((128, 128)).astype(numpy_dtype(dtype))}


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@needs_nvcc
@pytest.mark.parametrize(("dtype", "device", "launches"), NARROW)
def test_narrow_products_use_tensor_cores_where_the_device_has_them(dtype: str, device: str, launches: int) -> None:
    from benchmarks._cuda_kernels import examine

    target = targets.get(device)
    assert isinstance(target, CudaTarget)
    found = examine(model_and_inputs(dtype)[0], target)
    assert found.on_tensor_cores == launches
    assert not found.spilling
    assert all(each.resources is not None for each in found.launches)


NARROW_NETS = [  # products and convolutions of odd sizes, batched, strided, padded; a net in integers
    ("float16", "t4", len(PRODUCTS) + 1 + len(CONVOLUTIONS)),
    ("bfloat16", "h100", len(PRODUCTS) + 1 + len(CONVOLUTIONS)),
    ("int8", "t4", 3),
    ("uint8", "a100", 3),
]


@needs_nvcc
@pytest.mark.parametrize(("dtype", "device", "launches"), NARROW_NETS)
def test_machine_code_of_narrow_nets_has_matrix_instructions_and_spills_nothing(
    dtype: str, device: str, launches: int
) -> None:
    from benchmarks._cuda_kernels import examine

    model = quantized_image_net(dtype) if "int8" in dtype else many_products(numpy_dtype(dtype))[0]
    target = targets.get(device)
    assert isinstance(target, CudaTarget)
    found = examine(model, target)
    assert found.on_tensor_cores == launches
    assert not found.spilling
    for launch in found.launches:
        assert launch.resources is not None
        assert launch.resources.registers * launch.threads <= REGISTERS_OF_A_BLOCK
        assert launch.resources.shared <= target.machine.shared_bytes


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_tensor_core_operations_simulate_right(dtype: str) -> None:
    model, inputs = model_and_inputs(dtype)
    module = compiler.compile(model, "cuda-simulated", records=False)
    assert "mma_sync(" in source_of(bytes(module.artifact.library)).text
    got = module.run(inputs)["y"].astype(np.float64)
    (weight,) = (onnx.numpy_helper.to_array(each).astype(np.float64) for each in model.graph.initializer)
    # One rounding of the result to the element type; sums of integers are exact.
    tolerance = {"float16": 2e-3, "bfloat16": 1e-2, "int8": 0}[dtype]
    np.testing.assert_allclose(got, inputs["x"].astype(np.float64) @ weight, rtol=tolerance, atol=tolerance)


def test_a_missing_compiler_is_an_error_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "/nowhere/nvcc")
    with pytest.raises(ToolchainMissing, match="/nowhere/nvcc") as caught:
        find_nvcc()
    assert caught.value.hint
    with pytest.raises(UserError, match="/nowhere/nvcc"):
        compiler.compile(chain(2, 4), "t4", records=False)


def test_a_listing_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler.inspection.listings import list_targets

    monkeypatch.setenv(OVERRIDE, "/nowhere/nvcc")
    listed = {each.name: each for each in list_targets()[0]}
    assert (listed["t4"].toolchain, listed["t4"].install) == (None, install_command("cuda"))
    assert listed["cuda-simulated"].toolchain
    assert listed["cuda-simulated"].device == "sm_80, simulated"
    if targets.get("jetson-orin-gpu").host.is_cross:  # type: ignore[attr-defined]
        assert listed["jetson-orin-gpu"].runs == "no: this machine lacks architecture aarch64"


def test_the_compiler_of_nvidias_python_packages_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "nvidia" / "cu13" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.delenv(OVERRIDE, raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(nvcc, "_PLACES", ())
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert find_nvcc().program == str(program)
    program.unlink()
    with pytest.raises(ToolchainMissing) as caught:
        find_nvcc()
    assert caught.value.hint == install_command("cuda")


def test_matrix_instructions_are_told_from_others_of_their_name() -> None:
    text = """
.text.first_kernel:
        /*0010*/                   HFMA2.MMA R5, -RZ, RZ, 0, 0 ;
        /*0020*/                   FFMA R1, R2, R3, R4 ;
.text.second_kernel:
        /*0010*/              @!P0 HMMA.16816.F32 R4, R8, R10, R4 ;
        /*0020*/                   IMMA.8816.S8.S8 R4, R8.ROW, R10.COL, R4 ;
        /*0030*/                   HGMMA.64x64x16.F32 R24, gdesc[UR4], R24 ;
"""
    assert nvcc.matrix_instructions(text) == {"first_kernel": 0, "second_kernel": 3}


def test_architectures_go_without_the_suffix_that_dlight_does_not_read() -> None:
    for name in presets():
        target = targets.get(name)
        assert isinstance(target, CudaTarget)
        options = target.tvm_options()
        assert str(options["arch"]).removeprefix("sm_").isdigit()
        assert options["max_threads_per_block"] == 1024


def test_a_module_laid_out_otherwise_is_refused() -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    good = text("cuda") + struct.pack("<Q", 0) + text("code")
    assert parsed_module(good)[0].text == "code"
    with pytest.raises(TargetError):
        parsed_module(good + b"more")
    with pytest.raises(TargetError):
        parsed_module(text("ptx_") + good)


RECURRENT = [
    ("LSTM", 5, 2, 3, "forward"),
    ("GRU", 4, 6, 17, "bidirectional"),
    ("RNN", 4, 1, 77, "reverse"),
    ("LSTM", 33, 5, 131, "forward"),  # enough work for a block of threads for each team of samples
]


@pytest.mark.parametrize(("operator", "steps", "samples", "hidden", "direction"), RECURRENT)
def test_hidden_units_of_recurrent_layers_are_spread_over_threads(
    operator: str, steps: int, samples: int, hidden: int, direction: str
) -> None:
    model = recurrent(operator, steps, samples, hidden, direction)
    inputs = {"x": np.random.default_rng(0).standard_normal((steps, samples, 4)).astype(np.float32)}
    module = compiler.compile(model, "cuda-simulated", records=False)
    source = source_of(bytes(module.artifact.library)).text
    threads = re.search(rf"__launch_bounds__\((\d+)\) {operator.lower()}_kernel", source)
    assert threads is not None
    assert int(threads[1]) >= min(512, hidden)
    assert "__syncthreads();" in source
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(module.run(inputs)["y"], session.run(None, inputs)[0], rtol=1e-5, atol=1e-6)


def test_loops_whose_iterations_depend_on_each_other_are_not_shared_out() -> None:
    """y[i] = y[i - 1] + x[i], and a value that all threads read to know how far to go."""
    size = 40
    x, y = (tirx.decl_buffer([size], "float32", name=name) for name in ("x", "y"))
    i = tirx.Var("i", "int32")

    def loop(extent: Any, value: Any) -> Any:
        return tirx.For(i, 0, extent, tirx.ForKind.SERIAL, tirx.BufferStore(y, value, [i]))

    before = tirx.BufferLoad(y, [tirx.max(i - 1, 0)])
    assert cooperative(loop(size, tirx.BufferLoad(x, [i])), []) is not None
    assert cooperative(loop(size, before + tirx.BufferLoad(x, [i])), []) is None
    steered = loop(tirx.Cast("int32", tirx.BufferLoad(y, [0])), tirx.BufferLoad(x, [i]))
    fixed = loop(size, tirx.BufferLoad(x, [i]))
    assert cooperative(tirx.SeqStmt([fixed, steered]), []) is None
