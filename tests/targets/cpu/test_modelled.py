"""The model of processors: counts of instructions against QEMU's, trip counts, cycles and traffic of known code."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import targets
from compiler.frontends.source import import_model
from compiler.tuning.measuring.build_worker import Builder
from compiler.tuning.measuring.messages import BuildRequest, WorkerSetup
from compiler.tuning.tasks import Task, extract_tasks
from targets.cpu.modelled import ir
from targets.cpu.modelled.caches import Traffic, accesses_of
from targets.cpu.modelled.frequencies import BlockCounts
from targets.cpu.modelled.measurer import Core, analyse
from targets.cpu.modelled.tools import find_tools
from targets.errors import ToolchainMissing
from tests.fuzz.tuning import convolution_model

CORES = 4
PROGRAMS = ("qemu-aarch64", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-objcopy")
needs_llvm = pytest.mark.skipif(not shutil.which("llvm-mca-22"), reason="llvm-22 is not installed")
needs_qemu = pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason="no emulator, or cross compiler")
RUNNER = Path(__file__).with_name("counted_run.c")


@cache
def _built() -> list[tuple[Task, Any, str]]:
    """Tasks of a convolution, their scheduled functions, and their LLVM IR."""
    target = targets.get("raspberry-pi-5")
    builder = Builder(WorkerSetup(target=target))
    found = []
    for task in extract_tasks(import_model(convolution_model()).mod, target).tasks:
        builder.handle(task.kernel)
        function = builder.scheduled(BuildRequest(task.key, task.default))
        found.append((task, function, str(builder.module(function).inspect_source("ll"))))
    return found


def _counted_by_qemu(task: Task, text: str, folder: Path) -> int:
    """The instructions that the busiest of `CORES` cores runs in a call."""
    tools = find_tools()
    (folder / "kernel.ll").write_text(text)
    compiled = [tools.llc, "-O3", "--relocation-model=pic", "--mcpu=cortex-a76", "-filetype=obj"]
    _run(*compiled, folder / "kernel.ll", "-o", folder / "kernel.o")
    _run("aarch64-linux-gnu-objcopy", "--rename-section", ".text=kernel_text", folder / "kernel.o")
    shapes = [each.shape for each in task.kernel.arguments]
    arguments = ",".join(f"tensor(2,32,{len(each)},(int64_t[]){{{','.join(map(str, each))}}})" for each in shapes)
    program = folder / "run"
    defines = (f"-DCORES={CORES}", f"-DARGUMENTS={arguments}")
    _run("aarch64-linux-gnu-gcc", "-static", *defines, RUNNER, folder / "kernel.o", "-lm", "-o", program)
    listed = re.findall(r"^(\w+) \w (\S+)$", _run("aarch64-linux-gnu-nm", program), re.M)
    symbols = {name: int(at, 16) for at, name in listed}
    code = f"{symbols['__start_kernel_text']:#x}..{symbols['__stop_kernel_text'] - 1:#x}"
    log = folder / "log"
    _run("qemu-aarch64", "-one-insn-per-tb", "-d", "exec,nochain", "-dfilter", code, "-D", log, program)
    with log.open() as lines:
        return sum(line.startswith("Trace") for line in lines)


def _run(*command: object) -> str:
    return subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True).stdout


@needs_llvm
@needs_qemu
def test_instructions_are_those_that_qemu_counts(tmp_path: Path) -> None:
    core = Core("aarch64-linux-gnu", "cortex-a76", "neoverse-n1")
    for task, _, text in _built():
        if task.rule.name == "conv-winograd":
            pipeline = analyse(text, core, CORES, find_tools())
            counted = _counted_by_qemu(task, text, tmp_path)
            assert pipeline.instructions == pytest.approx(counted, rel=0.04)  # conditions of borders are sampled
            return
    raise AssertionError("no Winograd convolution")


LOOPS = """
define i32 @nest(i64 %n) {
entry:
  br label %outer

outer:
  %i = phi i64 [ 0, %entry ], [ %i.next, %latch ]
  br label %inner

inner:
  %j = phi i64 [ 0, %outer ], [ %j.next, %inner ]
  %j.next = add nuw nsw i64 %j, 2
  %done = icmp ugt i64 %j, 7
  br i1 %done, label %middle, label %inner

middle:
  %border = icmp ult i64 %i, 3
  br i1 %border, label %rare, label %common

rare:
  %i.rare = add nuw nsw i64 %i, 1
  br label %latch

common:
  %i.common = add nuw i64 %i, 1
  br label %latch

latch:
  %i.next = phi i64 [ %i.rare, %rare ], [ %i.common, %common ]
  %end = icmp eq i64 %i.next, 12
  br i1 %end, label %exit, label %outer

exit:
  ret i32 0
}
"""


def test_trip_counts_and_conditions() -> None:
    counts = BlockCounts(ir.parse(LOOPS)["nest"], cores=1)
    assert counts.trips == {"outer": 12.0, "inner": 5.0}
    assert counts.counts["inner"] == 60.0
    assert counts.counts["rare"] == pytest.approx(3.0, abs=0.1)
    assert (counts.counts["exit"], counts.guessed) == (1.0, [])


def test_traffic_shrinks_with_the_cache() -> None:
    for task, function, _ in _built():
        accesses = accesses_of(function)
        traffic = Traffic(accesses, 1)
        small, large = sum(traffic.into(1 << 10).values()), sum(traffic.into(1 << 24).values())
        touched = traffic.touched()
        assert small >= large == sum(touched.values())
        # Winograd's four tiles of a 14 x 14 image all reach over its border; conditions of borders are sampled.
        near = 0.3 if task.rule.name == "conv-winograd" else 0.15
        for number, place in enumerate(accesses.parameters):
            if place is not None and not task.kernel.arguments[place].is_output:
                assert touched[number] == pytest.approx(accesses.nbytes[number], rel=near)


@needs_llvm
def test_an_in_order_core_takes_longer() -> None:
    text = next(text for task, _, text in _built() if task.rule.name == "conv-winograd")
    fast = analyse(text, Core("aarch64-linux-gnu", "cortex-a76", "neoverse-n1"), 1, find_tools())
    slow = analyse(text, Core("aarch64-linux-gnu", "cortex-a76", "cortex-a53"), 1, find_tools())
    assert fast.instructions == slow.instructions
    assert 0.25 * fast.instructions < fast.cycles < slow.cycles


def test_a_missing_tool_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainMissing, match="none is on PATH") as caught:
        find_tools.__wrapped__()
    assert "llvm-22" in str(caught.value.hint)
