"""The RISC-V target: its features are LLVM's, and kernels hold vector multiply-adds."""

from __future__ import annotations

from tvm import te

import targets
from schedules.ir.tir import tvm
from targets.cpu.family import CpuTarget, llvm_features


def test_it_requires_exactly_what_llvm_may_use() -> None:
    target = targets.get("riscv64-linux", cores=1)
    assert isinstance(target, CpuTarget)
    family = target.family
    may_use = llvm_features(family.triple, target.mcpu, target.attributes) & family.codegen_features
    assert set(target.required_features) == may_use


def test_products_and_sums_become_vector_multiply_adds() -> None:
    target = targets.get("riscv64-linux", cores=1)
    a = te.placeholder((4096,), name="a")
    k = te.reduce_axis((0, 8), name="k")
    function = te.create_prim_func([a, te.compute((4096,), lambda i: te.sum(a[i] * a[i], axis=k), name="c")])
    schedule = tvm.s_tir.Schedule(function)
    i, _ = schedule.get_loops(schedule.get_sblock("c"))
    schedule.vectorize(schedule.split(i, [None, 4])[1])
    assembly = tvm.compile(schedule.mod, target=target.tvm_target()).mod.inspect_source("asm")
    assert "vfmacc" in assembly or "vfmadd" in assembly
