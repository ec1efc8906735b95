"""The device's server supports measurements over TVM's RPC: upload, load, run, time. Emulated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tvm import te

import compiler
import targets
from compiler.device.bundle import write_bundle
from compiler.device.push import push
from compiler.errors import IncompatibleArtifactError
from schedules.ir.tir import tvm
from targets.conformance.models import small_net
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.device.servers import device_server


@pytest.fixture(scope="module", params=["riscv64-linux", "raspberry-pi-2"])
def target(request: pytest.FixtureRequest) -> targets.Target:
    """A 64-bit and a 32-bit target, for a 64-bit client."""
    return target_that_runs(request.param)


@pytest.fixture(scope="module")
def bundle(target: targets.Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("device") / "bundle"
    write_bundle(compiler.compile(small_net(1), target, threads=1).artifact, target, folder)
    return folder


@pytest.fixture(scope="module")
def address(target: targets.Target, bundle: Path) -> Iterator[str]:
    program = bundle / "bin" / "tensorwright-server"
    with device_server(target.emulator(), program, bundle / "modules") as listening:
        yield listening


def test_a_kernel_is_uploaded_run_and_timed(address: str, target: targets.Target, tmp_path: Path) -> None:
    from tvm import rpc

    a = te.placeholder((100,), name="a")
    function = te.create_prim_func([a, te.compute((100,), lambda i: a[i] * 2.0 + 1.0)])
    path = tmp_path / "kernel.so"
    target.export_library(tvm.compile(function, target=target.tvm_target()), path)
    host, _, port = address.rpartition(":")
    session = rpc.connect(host, int(port))
    session.upload(str(path))
    loaded = session.load_module("kernel.so")
    given = tvm.runtime.tensor(np.arange(100, dtype="float32"), session.cpu())
    out = tvm.runtime.tensor(np.zeros(100, "float32"), session.cpu())
    times = loaded.time_evaluator("main", session.cpu(), number=2, repeat=3)(given, out).results
    np.testing.assert_array_equal(out.numpy(), np.arange(100) * 2.0 + 1.0)
    assert len(times) == 3
    assert min(times) > 0


def test_a_module_for_another_processor_is_refused(address: str, bundle: Path, tmp_path: Path) -> None:
    other = target_that_runs("aarch64-linux")
    path = tmp_path / "other.twm"
    compiler.compile(small_net(1), other, threads=1).export(path)
    active = bundle / "modules" / "active.twm"
    before = active.read_bytes() if active.exists() else None
    with pytest.raises(
        IncompatibleArtifactError, match=r"the module is for aarch64 \(target aarch64-linux\), and the device at"
    ):
        push(path, address)
    assert (active.read_bytes() if active.exists() else None) == before


def test_a_module_is_pushed(address: str, bundle: Path) -> None:
    result = push(bundle / "model.twm", address, runs=1)
    assert result.difference < 1e-5
    assert (bundle / "modules" / "active.twm").read_bytes() == (bundle / "model.twm").read_bytes()
