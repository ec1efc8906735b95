"""Bundles and pushes: a module on a device without Python, emulated, in a bare root folder."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

import compiler
from compiler.artifact import KeyKind, sign, write_new_keys
from compiler.artifact.tensors import Blob
from compiler.cli import main
from compiler.device import connection
from compiler.device.bundle import glibc_of, write_bundle
from compiler.device.credentials import load_credentials
from compiler.device.push import push
from compiler.driver.compile import find_target
from compiler.errors import DeviceError, OptionError, StorageError
from targets import Target
from targets.conformance.models import random_inputs, small_net
from tests.compiler.cli.running import isolated_consoles
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.device.servers import address_of, device_server
from tests.conftest import OPTIMIZE

_SYSTEM_LIBRARIES = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2",
                     "libpthread.so.0", "librt.so.1")  # fmt: skip


@pytest.fixture(scope="module")
def target() -> Target:
    return target_that_runs("raspberry-pi-5")


@pytest.fixture(scope="module")
def net(target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.twm"
    compiler.compile(small_net(1), target, threads=1).export(path)
    return path


@pytest.fixture(scope="module")
def bundle(net: Path, target: Target, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from compiler.artifact import read_artifact

    folder = tmp_path_factory.mktemp("device") / "bundle"
    made = write_bundle(read_artifact(net), target, folder)
    assert made.onnx_runtime_bytes is not None
    for project in ("tensorwright", "apache-tvm", "apache-tvm-ffi", "libsodium", "Wuffs"):
        assert made.files[f"licenses/{project}/LICENSE"] > 400
    assert {"licenses/apache-tvm/NOTICE", "licenses/apache-tvm-ffi/NOTICE"} <= set(made.files)
    if os.environ.get(OPTIMIZE):
        assert made.runtime_bytes < made.onnx_runtime_bytes / 4
    return folder


@pytest.fixture(scope="module")
def root(bundle: Path, target: Target, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An emulator whose root folder contains only the bundle's system dependencies."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "lib").mkdir()
    for name in _SYSTEM_LIBRARIES:
        shutil.copy(Path("/usr/aarch64-linux-gnu/lib") / name, folder / "lib")
    emulator = target.emulator()[0]
    return [emulator, "-L", str(folder), "-E", f"LD_LIBRARY_PATH={folder}/lib:{bundle}/lib", "-E", "TVM_NUM_THREADS=1"]


def device(root: list[str], *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*root, *map(str, command)], capture_output=True, text=True, timeout=600)


def test_the_runner_verifies_and_measures(root: list[str], bundle: Path) -> None:
    done = device(root, bundle / "bin" / "tensorwright-run", bundle / "model.twm", "--verify", "--runs", 3)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    assert re.search(r"p50 [\d.]+ ms, p99 [\d.]+ ms, 3 runs", done.stdout)


def test_the_programs_need_no_newer_glibc_than_their_readme_says(root: list[str], bundle: Path) -> None:
    assert glibc_of(bundle) == "2.34"
    assert "glibc 2.34 or newer" in (bundle / "README").read_text()
    done = device(root, bundle / "bin" / "tensorwright-run", bundle / "model.twm", "--runs", "some")
    assert (done.returncode, done.stderr) == (1, "error: --runs takes a number from 1 to 1000000, not 'some'\n")


def test_the_runner_refuses_inputs_that_do_not_fit(root: list[str], bundle: Path, tmp_path: Path) -> None:
    (name, right), *_ = random_inputs(small_net(1)).items()
    deep = b'{"x":' + b"[" * 10**5 + b"}"
    for content, message in (
        (b"".join(Blob({name: right}).pieces), ""),
        (b"".join(Blob({name: right[..., :-1]}).pieces), rf"error: input '{name}' has shape .* and must be"),
        (b"".join(Blob({name: right.astype(np.float64)}).pieces), rf"input '{name}' is stored as F64"),
        (b"".join(Blob({name + "2": right}).pieces), rf"tensor '{name}' is missing"),
        (struct.pack("<Q", len(deep)) + deep, "nested too deeply"),
        (struct.pack("<Q", 2**64 - 1), "no valid header"),
    ):
        (tmp_path / "inputs").write_bytes(content)
        done = device(root, bundle / "bin" / "tensorwright-run", bundle / "model.twm", "--inputs", tmp_path / "inputs")
        assert done.returncode == (1 if message else 0), done.stderr
        assert re.search(message, done.stderr)


def test_the_example_builds_with_one_command_and_runs(root: list[str], bundle: Path) -> None:
    made = subprocess.run(["make", "-C", str(bundle)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = device(root, bundle / "example", bundle / "model.twm")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S+: float32, 40 bytes, first [\d.e-]+\n", done.stdout)
    assert device(root, bundle / "example", bundle / "README").returncode == 1


def test_a_bundle_is_for_its_architecture_and_a_new_folder(net: Path, target: Target, bundle: Path) -> None:
    from compiler.artifact import read_artifact

    with pytest.raises(OptionError, match="aarch64"):
        write_bundle(read_artifact(net), find_target("host"), bundle / "new")
    with pytest.raises(OptionError, match="not an empty folder"):
        write_bundle(read_artifact(net), target, bundle)


def test_a_full_disk_leaves_no_half_of_a_bundle(
    net: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler.artifact import read_artifact

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = tmp_path / "bundle"
    monkeypatch.setattr("compiler.device.bundle.shutil.copy", full)
    with pytest.raises(StorageError, match="No space left"):
        write_bundle(read_artifact(net), target, folder)
    assert not folder.exists()


@pytest.fixture
def server_process(root: list[str], bundle: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [*root, str(bundle / "bin" / "tensorwright-server"), "0", "--folder", str(tmp_path / "modules")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def server(server_process: subprocess.Popen[str], tmp_path: Path) -> tuple[str, Path]:
    return address_of(server_process), tmp_path / "modules"


def test_push_switches_to_a_module_that_proved_itself(server: tuple[str, Path], net: Path) -> None:
    address, folder = server
    first = push(net, address, runs=2)
    assert first.replaced is None
    assert first.difference < 1e-5
    assert 0 < first.p50_milliseconds <= first.p99_milliseconds
    assert (folder / "active.twm").read_bytes() == net.read_bytes()
    again = push(net, address, runs=1)
    assert again.replaced == again.active == first.active


def test_a_signed_module_is_pushed_encrypted(root: list[str], bundle: Path, net: Path, tmp_path: Path) -> None:
    """libsodium on another architecture: signatures and the connection; test_server.py covers this machine's."""
    server = bundle / "bin" / "tensorwright-server"
    assert device(root, server, "--new-key", tmp_path / "device.pem").returncode == 0
    client = write_new_keys(tmp_path / "laptop.pem", KeyKind.CONNECTION)
    trusted = write_new_keys(tmp_path / "release.pem")
    options = ("--key", tmp_path / "device.pem", "--client-key", client, "--trusted-key", trusted)
    signed = Path(shutil.copy(net, tmp_path / "signed.twm"))
    sign(signed, tmp_path / "release.pem")
    with device_server(root, server, tmp_path / "modules", *options) as address:
        credentials = load_credentials(tmp_path / "laptop.pem", tmp_path / "device.pem.pub")
        assert push(signed, address, credentials=credentials, runs=1).difference < 1e-5
        with pytest.raises(DeviceError, match=r"check failed: .*is not signed"):
            push(net, address, credentials=credentials)
        with pytest.raises(DeviceError, match="takes encrypted connections"):
            push(signed, address)


def test_push_leaves_the_old_module_where_numbers_differ(
    server: tuple[str, Path], net: Path, target: Target, tmp_path: Path
) -> None:
    address, folder = server
    push(net, address, runs=1)
    model = small_net(1)
    inputs = random_inputs(model)
    module = compiler.compile(model, target, threads=1)
    outputs = module.run(inputs)
    wrong = {name: value + np.float32(0.01) for name, value in outputs.items()}
    path = tmp_path / "wrong.twm"
    module.with_reference(inputs, wrong).export(path)
    with pytest.raises(DeviceError, match=r"reference run failed: .*differs from the reference in 10 of 10"):
        push(path, address)
    assert [each.name for each in folder.iterdir()] == ["active.twm"]
    assert (folder / "active.twm").read_bytes() == net.read_bytes()


def test_push_of_what_is_damaged_on_its_way(
    server: tuple[str, Path], net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    push(net, address, runs=1)
    damaged = bytearray(net.read_bytes())
    damaged[-100] ^= 1
    monkeypatch.setattr("compiler.device.push.read_mapped", lambda _: memoryview(damaged))
    with pytest.raises(DeviceError, match=r"check failed: .*is damaged: the checksum"):
        push(net, address)
    assert [each.name for each in folder.iterdir()] == ["active.twm"]
    assert (folder / "active.twm").read_bytes() == net.read_bytes()


@pytest.mark.parametrize("step", ["upload", "reference run", "switch"])
def test_push_to_a_device_that_dies_on_the_way(
    server: tuple[str, Path], server_process: subprocess.Popen[str], net: Path, step: str
) -> None:
    address, folder = server
    push(net, address, runs=1)

    def die(reached: str) -> None:
        if reached == step:
            (session,) = psutil.Process(server_process.pid).children()
            session.kill()

    with pytest.raises(DeviceError, match=f"{step} failed"):
        push(net, address, runs=1, progress=die)
    assert (folder / "active.twm").read_bytes() == net.read_bytes()
    # The server lives on, and cleaned up.
    assert push(net, address, runs=1).active == net.read_bytes()[32:64].hex()
    assert [each.name for each in folder.iterdir()] == ["active.twm"]


@pytest.mark.parametrize("step", ["upload", "reference run", "switch"])
def test_push_to_a_device_that_falls_silent(
    server: tuple[str, Path],
    server_process: subprocess.Popen[str],
    net: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """Like a device that loses power: the connection stays open, and no more data arrives."""
    address, folder = server
    push(net, address, runs=1)
    before = (folder / "active.twm").read_bytes()

    def stop(reached: str) -> None:
        if reached == step:
            (session,) = psutil.Process(server_process.pid).children()
            session.suspend()
            monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)

    with pytest.raises(DeviceError, match=f"{step} failed: no answer for 0.5 s"):
        push(net, address, runs=1, run_seconds=0.5 if step == "reference run" else 60, progress=stop)
    assert (folder / "active.twm").read_bytes() == before
    for session in psutil.Process(server_process.pid).children():
        session.kill()


def test_push_to_what_accepts_and_never_answers(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DeviceError, match=r"no answer for 0\.5 s"):
        push(net, f"127.0.0.1:{silent.getsockname()[1]}")


def test_push_where_nobody_listens(net: Path) -> None:
    with pytest.raises(DeviceError, match="no device server answers"):
        push(net, "127.0.0.1:1")
    with pytest.raises(OptionError, match="HOST:PORT"):
        push(net, "nonsense")


def test_commands(server: tuple[str, Path], net: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with isolated_consoles():
        assert main(["bundle", str(net), "--output", str(tmp_path / "made")]) == 0
        shown = capsys.readouterr().out
        assert "libtvm_runtime.so" in shown
        assert "libonnxruntime.so" in shown
        assert main(["push", str(net), server[0], "--runs", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["active"]) == 64
