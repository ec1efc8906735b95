"""Static programs: one file that runs in an empty root folder, with its module mapped without the system's loader."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import compiler
from compiler.artifact import write_new_keys
from compiler.artifact.tensors import Blob
from compiler.cli import main
from compiler.device.emulation import _read_outputs
from compiler.device.static_program import StaticProgram, undefined_symbols, write_static_program
from compiler.errors import OptionError
from targets import LinkError, Target
from targets.conformance.models import random_inputs, small_net
from tests.compiler.cli.running import isolated_consoles
from tests.compiler.device.emulators import target_that_runs
from tests.compiler.frontends.processing.nets import NAMES, net_with
from tests.conftest import OPTIMIZE


@pytest.fixture(scope="module")
def target() -> Target:
    return target_that_runs("aarch64-linux", cores=2)


@pytest.fixture(scope="module")
def module(target: Target) -> compiler.Module:
    return compiler.compile(small_net("batch"), target, threads=2, reference_inputs=random_inputs(small_net(1)))


@pytest.fixture(scope="module")
def program(module: compiler.Module, target: Target, tmp_path_factory: pytest.TempPathFactory) -> StaticProgram:
    """Path of a module that is signed by the key next to it."""
    folder = tmp_path_factory.mktemp("device")
    write_new_keys(folder / "key.pem")
    module.export(folder / "net.twm", sign_key=folder / "key.pem")
    return write_static_program(module.artifact, target, folder / "net", file=folder / "net.twm")


def run(program: StaticProgram, target: Target, root: Path, *options: object) -> subprocess.CompletedProcess[str]:
    """Run it in an empty root folder, without loader and C library."""
    command = [target.emulator()[0], "-L", str(root), str(program.path), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def test_it_verifies_itself_with_nothing_around(program: StaticProgram, target: Target, tmp_path: Path) -> None:
    key = program.path.with_name("key.pem.pub")
    done = run(program, target, tmp_path, "--verify", "--runs", 3, "--trusted-key", key)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    assert re.search(r"p50 [\d.]+ ms, p99 [\d.]+ ms, 3 runs", done.stdout)


def test_it_is_refused_without_a_trusted_signature(program: StaticProgram, target: Target, tmp_path: Path) -> None:
    other = write_new_keys(tmp_path / "other.pem")
    done = run(program, target, tmp_path, "--trusted-key", other)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the linked module is signed by none of the trusted keys, only by ")


@pytest.mark.skipif(not os.environ.get(OPTIMIZE), reason=f"the size of optimized code: set {OPTIMIZE}")
def test_it_is_a_sixth_of_onnx_runtime(program: StaticProgram) -> None:
    assert program.onnx_runtime_bytes is not None
    assert program.bytes < program.onnx_runtime_bytes / 6


def test_a_program_that_reads_pictures(program: StaticProgram, target: Target, tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    logits = np.array([[1.0, 3.0, 2.0]], np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    pillow.fromarray(pixels).save(tmp_path / "cat.jpg")
    given = compiler.Processing(task="classify", top=2, names=NAMES)
    module = compiler.compile(net_with({"logits": logits}), target, processing=given, threads=1)
    reader = write_static_program(module.artifact, target, tmp_path / "net")
    done = run(reader, target, tmp_path, tmp_path / "cat.jpg", "--json", "--outputs", tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["predictions"][0]["classes"]
    assert [(each["name"], each["class"]) for each in found] == [("dog", 1), ("bird", 2)]
    expected = np.exp(logits[0] - 3) / np.exp(logits[0] - 3).sum()
    np.testing.assert_allclose([each["score"] for each in found], expected[[1, 2]], rtol=1e-5)
    # The others carry no decoders.
    assert reader.bytes - reader.module_bytes > program.bytes - program.module_bytes + 150_000
    refused = run(program, target, tmp_path, tmp_path / "cat.jpg")
    assert "was compiled without processing" in refused.stderr


def test_a_program_of_32_bits(tmp_path: Path) -> None:
    target = target_that_runs("raspberry-pi-2")
    inputs = random_inputs(small_net(1))
    module = compiler.compile(small_net(1), target, threads=1, reference_inputs=inputs)
    program = write_static_program(module.artifact, target, tmp_path / "net")
    assert program.bytes < 4_000_000
    done = run(program, target, tmp_path, "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


def test_an_open_size_gives_the_numbers_of_this_machine(
    program: StaticProgram, module: compiler.Module, target: Target, tmp_path: Path
) -> None:
    inputs = random_inputs(small_net(5))
    with (tmp_path / "inputs").open("wb") as file:
        file.writelines(Blob(inputs).pieces)
    done = run(program, target, tmp_path, "--inputs", tmp_path / "inputs", "--outputs", tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    outputs = _read_outputs(memoryview((tmp_path / "outputs").read_bytes()), module.artifact.manifest.outputs)
    for name, expected in compiler.compile(small_net(5), "host", threads=1).run(inputs).items():
        np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-6)


def test_a_wrong_reference_is_found(module: compiler.Module, target: Target, tmp_path: Path) -> None:
    inputs = random_inputs(small_net(1))
    wrong = {name: value + np.float32(0.01) for name, value in module.run(inputs).items()}
    program = write_static_program(module.with_reference(inputs, wrong).artifact, target, tmp_path / "wrong")
    done = run(program, target, tmp_path, "--verify")
    assert done.returncode == 1
    assert "differs from the reference in 10 of 10 elements" in done.stderr


def test_what_the_c_library_has_not_is_a_link_error(
    module: compiler.Module, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert undefined_symbols(module.artifact, target, tmp_path)[0].startswith("TVMFFI")
    monkeypatch.setattr("compiler.device.static_program.undefined_symbols", lambda *_: ["no_such_function"])
    with pytest.raises(LinkError, match="no_such_function"):
        write_static_program(module.artifact, target, tmp_path / "new")


def test_command(module: compiler.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module.export(tmp_path / "net.twm")
    with isolated_consoles():
        assert main(["bundle", str(tmp_path / "net.twm"), "--static", "--output", str(tmp_path / "made")]) == 0
        shown = capsys.readouterr().out
        assert "libonnxruntime.so" in shown
        assert main(["bundle", str(tmp_path / "net.twm"), "--static", "--output", str(tmp_path / "made")]) != 0
    assert "exists" in capsys.readouterr().err
    assert (tmp_path / "made").stat().st_mode & 0o111


def test_a_program_is_for_its_architecture(module: compiler.Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="aarch64"):
        write_static_program(module.artifact, target_that_runs("host"), tmp_path / "new")
