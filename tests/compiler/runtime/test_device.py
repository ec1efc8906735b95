"""The order in which copies, runs and waits are submitted to a GPU, tested without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tvm_ffi

from compiler.runtime import device
from compiler.runtime.device import CudaDevice

CUDA = tvm_ffi.device("cuda", 0)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recorded calls of TVM, in order."""
    steps: list[str] = []

    def function(name: str) -> Callable[..., None]:
        return lambda *arguments: steps.append(f"{name.removeprefix('runtime.')} {arguments[-1]}")

    monkeypatch.setattr(device, "global_function", function)
    return steps


def call(steps: list[str]) -> Any:
    def main(*tensors: str) -> str:
        steps.append(f"main {' '.join(tensors)} on {tvm_ffi.get_raw_stream(CUDA)}")
        return "results"

    def placed() -> Any:
        for name in ("a", "b"):
            steps.append(f"copy {name}")
            yield name

    return CudaDevice().call(main, placed())


def test_a_run_waits_for_its_kernels(said: list[str]) -> None:
    assert call(said) == "results"
    assert said == ["copy a", "copy b", "main a b on 0", "Device_StreamSync 0"]


def test_kernels_of_a_callers_stream_wait_for_copies_and_are_waited_for(said: list[str]) -> None:
    with tvm_ffi.use_raw_stream(CUDA, 7):
        assert call(said) == "results"
    assert said == ["copy a", "copy b", "Device_StreamSync 0", "main a b on 7", "Device_StreamSync 7"]
