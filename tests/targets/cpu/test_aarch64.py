"""The 64-bit Arm targets: presets against LLVM's tables, the detected host, what instructions kernels hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import te

import targets
from schedules.ir.tir import tvm
from targets import cpuinfo
from targets.cpu import aarch64
from targets.cpu.family import EMULATOR_FOLDER, CpuTarget, CrossToolchain, llvm_features

PRESETS = sorted(aarch64.presets())
PI_5_CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_requires_exactly_what_llvm_may_use(name: str) -> None:
    target = targets.get(name, cores=4)
    assert isinstance(target, CpuTarget)
    family = target.family
    may_use = llvm_features(family.triple, target.mcpu, target.attributes) & family.codegen_features
    assert set(target.required_features) == may_use
    json.dumps(target.describe())


def test_a_board_has_its_own_number_of_cores() -> None:
    assert targets.get("raspberry-pi-4").machine.cores == 4
    assert targets.get("raspberry-pi-4", cores=1).machine.cores == 1


@pytest.mark.parametrize("name", PRESETS)
def test_products_and_sums_become_vector_multiply_adds(name: str) -> None:
    target = targets.get(name, cores=1)
    a = te.placeholder((4096,), name="a")
    k = te.reduce_axis((0, 8), name="k")
    function = te.create_prim_func([a, te.compute((4096,), lambda i: te.sum(a[i] * a[i], axis=k), name="c")])
    schedule = tvm.s_tir.Schedule(function)
    i, _ = schedule.get_loops(schedule.get_sblock("c"))
    schedule.vectorize(schedule.split(i, [None, 4])[1])
    assembly = tvm.compile(schedule.mod, target=target.tvm_target()).mod.inspect_source("asm")
    assert "fmla\tv" in assembly
    assert "z0." not in assembly  # no scalable vectors


def test_the_host_uses_what_the_system_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cpuinfo, "features", lambda: cpuinfo.parse_features(PI_5_CPUINFO))
    host = aarch64.host(cores=4)
    assert set(host.required_features) == {"dotprod", "fullfp16", "lse", "neon", "rdm"}
    used = llvm_features(host.family.triple, host.mcpu, host.attributes) & host.family.codegen_features
    assert used == set(host.required_features)


def test_another_architecture_does_not_fit_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuinfo, "architecture", lambda: "x86_64")
    target = targets.get("raspberry-pi-5")
    assert target.is_cross
    assert target.missing_features() == ("architecture aarch64",)


def test_a_missing_cross_toolchain_gives_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path=None: "/usr/bin/apt-get" if name == "apt-get" else None)
    toolchain = CrossToolchain("aarch64", "aarch64-linux-gnu", "aarch64")
    with pytest.raises(targets.ToolchainMissing) as caught:
        toolchain.linker()
    assert caught.value.hint == "sudo apt-get install -y g++-aarch64-linux-gnu"
    with pytest.raises(targets.ToolchainMissing) as caught:
        toolchain.emulator()
    assert caught.value.hint == "sudo apt-get install -y qemu-user"


def test_an_emulator_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "qemu-aarch64"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv(EMULATOR_FOLDER, str(tmp_path))
    assert CrossToolchain("aarch64", "aarch64-linux-gnu", "aarch64").emulator()[0] == str(program)


def test_a_module_is_a_library_of_its_architecture(tmp_path: Path) -> None:
    target = targets.get("raspberry-pi-4", cores=1)
    a = te.placeholder((8,), name="a")
    function = te.create_prim_func([a, te.compute((8,), lambda i: a[i] + 1.0)])
    path = tmp_path / "library.so"
    target.export_library(tvm.compile(function, target=target.tvm_target()), path)
    assert np.frombuffer(path.read_bytes()[18:20], "<u2")[0] == 183  # EM_AARCH64
