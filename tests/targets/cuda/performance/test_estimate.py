"""The model of a GPU on small kernels in PTX, whose counts are known by hand."""

from __future__ import annotations

import pytest

from targets.cuda.nvcc import KernelResources
from targets.cuda.performance import program
from targets.cuda.performance.execution import Launch
from targets.cuda.performance.measurer import Device, LaunchEstimate, estimate_launch
from targets.cuda.performance.throughput import multiprocessor, occupancy
from targets.errors import TargetError

_H100 = Device(90, 132, 1.83e9, 3.35e12, 5120)
# Each thread goes `turns` times round a loop that reads global memory `stride` bytes from thread to thread.
_LOOP = """
.visible .entry loop(.param .u64 source, .param .u64 result)
.maxntid {threads}, 1, 1
{{
  .reg .pred %p<3>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<4>;
  .shared .align 16 .b8 tile[16384];
  ld.param.u64 %rd1, [source];
  cvta.to.global.u64 %rd2, %rd1;
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd3, %r1, {stride};
  add.s64 %rd4, %rd2, %rd3;
  mov.u32 %r2, 0;
  mul.lo.s32 %r5, %r1, {bank};
  mov.u32 %r6, tile;
  add.s32 %r7, %r6, %r5;
$again:
  ld.global.f32 %f1, [%rd4];
  st.shared.f32 [%r7], %f1;
  bar.sync 0;
  ld.shared.f32 %f2, [%r7];
  add.s64 %rd4, %rd4, 65536;
  add.s32 %r2, %r2, 1;
  setp.ne.s32 %p1, %r2, {turns};
  @%p1 bra $again;
  st.global.f32 [%rd4], %f2;
  ret;
}}
"""


def estimated(
    *, turns: int = 8, stride: int = 4, bank: int = 4, blocks: int = 132, registers: int = 32, spills: int = 0
) -> LaunchEstimate:
    text = _LOOP.format(threads=64, stride=stride, bank=bank, turns=turns)
    (kernel,) = program.parse(text)
    taken = KernelResources("loop", registers, 0, spills, spills, 16384)
    return estimate_launch(kernel, taken, Launch((64, 1, 1), (blocks, 1, 1), {}), _H100)


def test_counts_are_those_of_the_program() -> None:
    demand = estimated(turns=8).demand
    assert demand.instructions == 2 * (9 + 8 * 8 + 2)  # two warps: before, eight turns of eight, after
    assert demand.accesses == demand.sectors == 2 * 4 * 9  # 128 bytes a warp are four sectors
    assert demand.shared_passes == 2 * 2 * 8
    assert demand.conflicts == 0


@pytest.mark.parametrize(("stride", "sectors"), [(0, 1), (4, 4), (8, 8), (32, 32), (128, 32)])
def test_accesses_to_global_memory_count_sectors(stride: int, sectors: int) -> None:
    assert estimated(stride=stride).demand.accesses == 2 * 9 * sectors


@pytest.mark.parametrize(("bank", "passes"), [(4, 1), (8, 2), (12, 1), (16, 4), (128, 32), (132, 1)])
def test_banks_of_shared_memory_conflict(bank: int, passes: int) -> None:
    demand = estimated(bank=bank).demand
    assert demand.shared_passes == 2 * 2 * 8 * passes
    assert demand.conflicts == 2 * 2 * 8 * (passes - 1)


def test_what_costs_more_takes_longer() -> None:
    plain = estimated().seconds
    assert estimated(turns=16).seconds > plain
    assert estimated(stride=128, turns=64).seconds > estimated(turns=64).seconds
    assert estimated(bank=128).seconds > plain
    assert estimated(spills=64).seconds > plain
    full = estimated().occupancy.blocks * 132
    assert estimated(blocks=full + 1).seconds > estimated(blocks=full).seconds


def test_occupancy_has_the_least_of_its_limits() -> None:
    model = multiprocessor(90)
    assert occupancy(model, 256, 32, 0).blocks == 8  # 64 warps
    assert occupancy(model, 256, 128, 0).limit == "registers"
    assert occupancy(model, 256, 128, 0).blocks == 2
    assert occupancy(model, 64, 32, 48 << 10).blocks == 4  # 228 KiB, and one of each block's is the system's
    assert occupancy(model, 32, 16, 0).blocks == 32


def test_threads_that_part_meet_again() -> None:
    text = """
.visible .entry parted(.param .u64 x)
.maxntid 32
{
  .reg .pred %p<3>; .reg .b32 %r<9>;
  mov.u32 %r1, %tid.x;
  mov.u32 %r2, 0;
$again:
  add.s32 %r2, %r2, 1;
  setp.lt.u32 %p1, %r2, %r1;
  @%p1 bra $again;
  setp.gt.u32 %p2, %r1, 15;
  @%p2 add.s32 %r3, %r1, 1;
  ret;
}
"""
    (kernel,) = program.parse(text)
    taken = KernelResources("parted", 16, 0, 0, 0, 0)
    found = estimate_launch(kernel, taken, Launch((32, 1, 1), (1, 1, 1), {}), _H100)
    # The thread that goes round most has the others wait: 31 turns of three.
    assert found.demand.instructions == 2 + 31 * 3 + 3


def test_neighbours_in_shared_memory_are_accessed_as_vectors() -> None:
    text = """
.visible .entry joined(.param .u64 x)
.maxntid 32
{
  .reg .b32 %r<9>; .reg .f32 %f<9>;
  .shared .align 16 .b8 tile[4096];
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 4;
  ld.shared.f32 %f1, [%r2+4];
  ld.shared.f32 %f2, [%r2];
  ld.shared.f32 %f3, [%r2+8];
  ld.shared.f32 %f4, [%r2+12];
  ret;
}
"""
    (kernel,) = program.parse(text)
    taken = KernelResources("joined", 16, 0, 0, 0, 4096)
    demand = estimate_launch(kernel, taken, Launch((32, 1, 1), (1, 1, 1), {}), _H100).demand
    assert (demand.instructions, demand.shared_passes, demand.conflicts) == (4, 4, 0)


def test_what_cannot_be_modelled_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match=r"compute capability 7\.0 cannot be modelled"):
        multiprocessor(70)
    (kernel,) = program.parse(_LOOP.format(threads=64, stride=4, bank=4, turns=1))
    taken = KernelResources("loop", 32, 0, 0, 0, 300 << 10)
    with pytest.raises(TargetError, match="cannot hold a block"):
        estimate_launch(kernel, taken, Launch((64, 1, 1), (1, 1, 1), {}), _H100)
    monkeypatch.setattr("targets.cuda.performance.execution.MAX_STEPS", 100)
    with pytest.raises(TargetError, match="executes more than"):
        estimated(turns=99)
