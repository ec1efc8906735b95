"""Faults that the simulation shows and a processor alone would not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import targets
from targets.cuda.image import Source
from targets.cuda.simulator import CudaSimulator
from targets.cuda.target import CudaTarget

_KERNEL = """
extern "C" __global__ void __launch_bounds__(4) kernel(float* __restrict__ x_ptr, float* __restrict__ y_ptr) {
  __shared__ alignas(64) float kept_ptr[8];
  if (((int)threadIdx.x) < 2) {
    kept_ptr[((int)threadIdx.x)] = x_ptr[((int)threadIdx.x)];
  }
  __syncthreads();
  y_ptr[((int)threadIdx.x)] = kept_ptr[((int)threadIdx.x)];
  *(float2*)(y_ptr + 4) = *(float2*)(x_ptr + 4);
}
"""
# Calls the kernel on 8 floats at so many floats behind an address that vectors may have, and prints what it gives.
_CALL = """
import ctypes, sys
class Any(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int64), ("value", ctypes.c_int64)]
memory = (ctypes.c_float * 64)()
start = ctypes.addressof(memory) + -ctypes.addressof(memory) % 64 + 4 * int(sys.argv[2])
x, y = ((ctypes.c_float * 8).from_address(start + 64 * i) for i in range(2))
x[:] = range(8)
arguments = (Any * 4)(*(Any(0, value) for value in (ctypes.addressof(x), ctypes.addressof(y), 1, 4)))
ctypes.CDLL(sys.argv[1]).__tvm_ffi_kernel(None, arguments, 4, ctypes.byref(Any()))
print(*y)
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The kernel's library, by whether it is strict."""
    target = targets.get("cuda-simulated")
    assert isinstance(target, CudaTarget)
    simulator, source = CudaSimulator(target.compiler()), Source(_KERNEL, {"kernel": ("blockIdx.x", "threadIdx.x")})
    folders = {strict: tmp_path_factory.mktemp("kernels") for strict in (False, True)}
    return {strict: simulator.compiled(source, folder, strict=strict) for strict, folder in folders.items()}


def call(library: Path, offset: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _CALL, str(library), str(offset)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_shared_memory_that_was_never_written_holds_no_number(kernels: dict[bool, Path]) -> None:
    for library in kernels.values():
        done = call(library, 0)
        assert done.stdout.split() == ["0.0", "1.0", "nan", "nan", "4.0", "5.0", "0.0", "0.0"], done.stderr


def test_a_vector_at_an_address_that_a_device_refuses_ends_a_strict_process(kernels: dict[bool, Path]) -> None:
    assert call(kernels[False], 1).returncode == 0
    assert call(kernels[True], 1).returncode == -signal.SIGILL
