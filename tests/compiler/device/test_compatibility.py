"""A module, a program and a device that do not fit together: one error before anything runs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import compiler
import targets
from compiler.artifact import read_artifact
from compiler.device import compatibility
from compiler.device.compatibility import ServerVersions, check_runs_there
from compiler.device.programs import SOURCES, device_programs
from compiler.device.push import push
from compiler.errors import DeviceError, IncompatibleArtifactError
from targets.conformance.models import small_net
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.device.servers import device_server
from tests.compiler.tuning.rpc import rpc_server

# Processors of QEMU that lack something, by the target whose modules need it.
_LESSER = {
    "raspberry-pi-5": ("cortex-a72", "dotprod, fullfp16, lse, rdm"),
    "graviton3": ("neoverse-n1", "bf16, complxnum, fp16fml, i8mm, jsconv"),
    "raspberry-pi-4-32bit": ("cortex-a9", "fp-armv8, hwdiv-arm, vfp4"),
    "riscv64-linux": ("rv64,v=false", "v, zfh, zvfh"),
}


def module_for(name: str, folder: Path, **changes: Any) -> Path:
    """A small net compiled for a target, with fields of its manifest changed."""
    path = folder / f"{name}.twm"
    compiler.compile(small_net(1), target_that_runs(name), threads=1).export(path)
    if changes:
        artifact = read_artifact(path.read_bytes())
        manifest = msgspec.structs.replace(artifact.manifest, **changes)
        compiler.artifact.write_artifact(type(artifact)(**{**vars(artifact), "manifest": manifest}), path)
    return path


@pytest.mark.parametrize("name", _LESSER)
def test_a_processor_that_lacks_instructions_is_told_and_not_killed(name: str, tmp_path: Path) -> None:
    target = target_that_runs(name)
    path = module_for(name, tmp_path)
    processor, missing = _LESSER[name]
    runner = device_programs(target) / "tensorwright-run"
    command = target.emulator()

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *options, str(runner), str(path)], capture_output=True, text=True, timeout=600)

    assert run().returncode == 0
    refused = run("-cpu", processor)
    assert refused.returncode == 1, refused.stderr
    expected = f"error: the module needs processor features that this machine lacks: {missing} (it was compiled for"
    assert refused.stderr.startswith(expected), refused.stderr


def test_this_machine_is_seen_as_the_engine_sees_it(tmp_path: Path) -> None:
    """A program for x86-64, run natively."""
    target = targets.get("host", cores=1)
    if target.architecture != "x86_64":
        pytest.skip("not an x86-64 machine")
    path = tmp_path / "net.twm"
    compiler.compile(small_net(1), target, threads=1).export(path)
    assert read_artifact(path).manifest.target.required_cpu_features
    runner = device_programs(target) / "tensorwright-run"
    done = subprocess.run([runner, path, "--verify"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    wanted = target.required_features
    lacking = next(name for name in ("sse4a", "amx-tile", "avx512fp16", "avx512vp2intersect") if name not in wanted)
    artifact = read_artifact(path.read_bytes())
    described = msgspec.structs.replace(artifact.manifest.target, required_cpu_features=(*wanted, lacking))
    changed = msgspec.structs.replace(artifact.manifest, target=described)
    compiler.artifact.write_artifact(type(artifact)(**{**vars(artifact), "manifest": changed}), path)
    done = subprocess.run([runner, path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert f"features that this machine lacks: {lacking} " in done.stderr


def test_the_program_knows_what_every_preset_may_need() -> None:
    text = (SOURCES / "processor.cc").read_text(encoding="utf-8")
    known = set(re.findall(r'^    \{"([^"]+)"', text, re.MULTILINE))
    for name in targets.names():
        assert set(targets.get(name).required_features) <= known, name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address and the folder of a server on a Cortex-A72."""
    target, folder = target_that_runs("raspberry-pi-4"), tmp_path_factory.mktemp("server") / "modules"
    program = device_programs(target) / "tensorwright-server"
    with device_server([*target.emulator(), "-cpu", "cortex-a72"], program, folder) as address:
        yield address, folder


def test_push_refuses_before_it_uploads(server: tuple[str, Path], tmp_path: Path) -> None:
    address, folder = server
    assert push(module_for("raspberry-pi-4", tmp_path), address, runs=1).replaced is None
    active = (folder / "active.twm").read_bytes()
    steps: list[str] = []
    with pytest.raises(IncompatibleArtifactError, match=rf"the device at {address} lacks: dotprod, fullfp16, lse, rdm"):
        push(module_for("raspberry-pi-5", tmp_path), address, progress=steps.append)
    assert steps == ["connect"]
    assert [each.name for each in folder.iterdir()] == ["active.twm"]
    assert (folder / "active.twm").read_bytes() == active


def test_push_to_a_server_of_another_version(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _ = server
    path = module_for("raspberry-pi-4", tmp_path)
    monkeypatch.setattr(compatibility, "PROTOCOL", 3)
    with pytest.raises(DeviceError, match=r"with protocol 2, but this version uses protocol 3\n.*create a new bundle"):
        push(path, address)
    monkeypatch.setattr(compatibility, "PROTOCOL", 1)
    with pytest.raises(DeviceError, match=r"with protocol 2, but .* uses protocol 1\n.*update Tensorwright here"):
        push(path, address)


def test_push_to_a_server_that_says_no_version(tmp_path: Path) -> None:
    """TVM's own server has the protocol but none of our extensions, like servers from before versions were reported."""
    path = module_for("raspberry-pi-4", tmp_path)
    with (
        rpc_server() as port,
        pytest.raises(DeviceError, match=r"127.0.0.1:\d+ does not report its version.*\n.*create a new bundle"),
    ):
        push(path, f"127.0.0.1:{port}")


def test_what_a_device_can_not_run_is_named(tmp_path: Path) -> None:
    manifest = read_artifact(module_for("raspberry-pi-4", tmp_path)).manifest
    device = ServerVersions(1, 1, "0.1", manifest.versions.tvm, "aarch64", frozenset({"neon"}))
    check_runs_there(manifest, device, "pi:9090")
    newer = msgspec.structs.replace(manifest, format_version=2)
    with pytest.raises(
        IncompatibleArtifactError, match=r"version 2, and the server at pi:9090 \(.* 0.1\) reads up to 1"
    ):
        check_runs_there(newer, device, "pi:9090")
    other = msgspec.structs.replace(manifest, versions=msgspec.structs.replace(manifest.versions, tvm="0.99"))
    with pytest.raises(IncompatibleArtifactError, match=r"compiled with TVM 0.99, and the server at pi:9090 has TVM"):
        check_runs_there(other, device, "pi:9090")


def test_the_program_refuses_another_engine(tmp_path: Path) -> None:
    target = target_that_runs("raspberry-pi-4")
    versions = read_artifact(module_for("raspberry-pi-4", tmp_path)).manifest.versions
    path = module_for("raspberry-pi-4", tmp_path, versions=msgspec.structs.replace(versions, tvm="0.99"))
    runner = str(device_programs(target) / "tensorwright-run")
    done = subprocess.run([*target.emulator(), runner, str(path)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    assert re.match(r"error: the module was compiled with TVM 0.99, and this program has TVM \S+: bundle", done.stderr)
