"""The 32-bit Arm targets: presets against LLVM's tables, the instructions of kernels, and what they are linked as."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import te

import targets
from schedules.ir.tir import tvm
from targets.cpu import armv7
from targets.cpu.family import CpuTarget, llvm_features
from tests.compiler.device.emulators import target_that_runs

PRESETS = sorted(armv7.presets())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_requires_exactly_what_llvm_may_use(name: str) -> None:
    target = targets.get(name, cores=4)
    assert isinstance(target, CpuTarget)
    family = target.family
    may_use = llvm_features(family.triple, target.mcpu, target.attributes) & family.codegen_features
    assert set(target.required_features) == may_use
    json.dumps(target.describe())


@pytest.mark.parametrize("name", PRESETS)
def test_products_and_sums_become_vector_multiply_adds(name: str) -> None:
    target = targets.get(name, cores=1)
    a, b = te.placeholder((4096,), name="a"), te.placeholder((8, 4096), name="b")
    k = te.reduce_axis((0, 8), name="k")
    function = te.create_prim_func([a, b, te.compute((4096,), lambda i: te.sum(a[i] * b[k, i], axis=k), name="c")])
    schedule = tvm.s_tir.Schedule(function)
    i, _ = schedule.get_loops(schedule.get_sblock("c"))
    schedule.vectorize(schedule.split(i, [None, 4])[1])
    assembly = tvm.compile(schedule.mod, target=target.tvm_target()).mod.inspect_source("asm")
    fused = "vfp4" in target.required_features
    assert ("vfma.f32\tq" if fused else "vmul.f32\tq") in assembly


def test_a_module_is_a_library_of_its_architecture(tmp_path: Path) -> None:
    target = target_that_runs("raspberry-pi-2")
    a = te.placeholder((8,), name="a")
    function = te.create_prim_func([a, te.compute((8,), lambda i: a[i] + 1.0)])
    path = tmp_path / "library.so"
    target.export_library(tvm.compile(function, target=target.tvm_target()), path)
    header = path.read_bytes()
    assert header[4] == 1  # ELFCLASS32
    assert np.frombuffer(header[18:20], "<u2")[0] == 40  # EM_ARM
    assert np.frombuffer(header[36:40], "<u4")[0] & 0x400  # floats are passed in registers
