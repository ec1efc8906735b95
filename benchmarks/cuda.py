"""Kernels for NVIDIA graphics processors: what the compiler makes of each model, and, where there is a device, numbers
and times.

    python -m benchmarks.cuda                         # every model of the catalog, for sm_75
    python -m benchmarks.cuda resnet18 --target h100
    python -m benchmarks.cuda --no-nvcc               # fast: that every kernel is bound; source, no machine code
    python -m benchmarks.cuda --device --target h100  # on a machine with one: conformance, numbers, times

Without --device nothing is run or timed: kernels are compiled, and registers, spills and matrix instructions counted.
With it, the conformance suite runs on the device, outputs are compared with the processor's, and runs are timed in
turns with torch.compile and ONNX Runtime (copies to and from the device included for all). It fails where a check or
a number is wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import targets
from benchmarks import _cuda_device
from benchmarks.catalog import CATALOG, CatalogModel, inputs_for
from compiler.build import build_library
from compiler.errors import TensorwrightError
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from targets.cuda import CudaTarget
from targets.cuda_image import source_of
from targets.nvcc import KernelResources, tensor_core_instructions

_HEADER = "| model | kernels | launches | on tensor cores | most registers | spilled bytes | one thread | seconds |"
# A kernel's bound on threads and its body: the engine indents bodies, and closes them at the start of a line.
_KERNEL = re.compile(
    r'"C" __global__ void (?:__launch_bounds__\((\d+)\) )?\w+\([^)]*\) \{\n(.*?)^\}', re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Examined:
    """A model's kernels: `kernels` functions, and the machine code of each launch (none when it was not made)."""

    kernels: int
    launches: int
    resources: list[KernelResources]
    tensor_cores: int
    single_thread: int
    seconds: float


def source_arguments(model: CatalogModel) -> tuple[Any, dict[str, Any]]:
    """What `compile` takes for a model of the catalog."""
    source = model.load()
    keywords: dict[str, Any] = {"shapes": model.shapes, "constants": model.constants}
    if model.reference == "torch":
        import torch

        keywords["example_inputs"] = tuple(torch.from_numpy(np.array(each)) for each in inputs_for(model).values())
    return source, keywords


def examine(source: Any, target: CudaTarget, *, machine_code: bool = True, **keywords: Any) -> Examined:
    """Compile a model's kernels, which all have to be bound to threads, and look at their machine code.

    Args:
        machine_code: False stops at CUDA source: nvcc takes most of the time.

    Raises what compiling raises.
    """
    start = time.process_time()
    arguments = {"shapes": None, "constants": None, "example_inputs": None, "dynamic_shapes": None, **keywords}
    model = import_model(source, **arguments)
    context = PipelineContext(target=target, machine=target.machine, options={"checks": model.checks})
    pipeline = run_pipeline(model.mod, context)
    library = build_library(pipeline.mod, dataclasses.replace(target, simulated=True))
    text = source_of(library).text
    kernels = _KERNEL.findall(text)
    on_tensor_cores = sum("mma_sync(" in body for _, body in kernels)
    resources: list[KernelResources] = []
    if machine_code:
        resources, on_tensor_cores = _machine_code(text, target)
    # Where there is one thread the engine writes no bounds, or bounds of one.
    single = sum(threads in ("", "1") for threads, _ in kernels)
    report = pipeline.report["apply-schedules"]
    seconds = time.process_time() - start
    return Examined(len(report.kernels), len(kernels), resources, on_tensor_cores, single, seconds)


def _machine_code(source: str, target: CudaTarget) -> tuple[list[KernelResources], int]:
    """What each launch takes, and how many launches have matrix instructions."""
    nvcc = target.compilers()
    _, resources = nvcc.fatbin(source, target.machine.compute_capability)
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        cubin = Path(folder) / "kernels.cubin"
        nvcc.cubin(source, target.machine.compute_capability, cubin)
        counts = tensor_core_instructions(cubin)
    return resources, sum(count > 0 for count in counts.values())


def line(name: str, found: Examined) -> str:
    """A row of the table."""
    registers = max(each.registers for each in found.resources) if found.resources else "-"
    spilled = sum(each.spill_stores for each in found.resources) if found.resources else "-"
    return (
        f"| {name} | {found.kernels} | {found.launches} | {found.tensor_cores} | {registers} | {spilled} "
        f"| {found.single_thread} | {found.seconds:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    options = _parser().parse_args(arguments)
    names = options.models or list(CATALOG)
    if unknown := [name for name in names if name not in CATALOG]:
        print(f"no model of the catalog: {', '.join(unknown)}", file=sys.stderr)
        return 2
    target = targets.get(options.target)
    if not isinstance(target, CudaTarget):
        print(f"{options.target} is no CUDA target", file=sys.stderr)
        return 2
    if options.device:
        return _on_device(names, target, options)
    return _examined(names, target, machine_code=not options.no_nvcc)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="names of the catalog; all unless given")
    parser.add_argument("--target", default="t4", help="a CUDA target")
    parser.add_argument("--no-nvcc", action="store_true", help="stop at CUDA source")
    parser.add_argument("--device", action="store_true", help="run, compare and time on this machine's device")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a turn")
    return parser


def _examined(names: Sequence[str], target: CudaTarget, *, machine_code: bool) -> int:
    failed = False
    print(_HEADER + "\n|" + "---|" * (_HEADER.count("|") - 1))
    for name in names:
        try:
            source, keywords = source_arguments(CATALOG[name])
            found = examine(source, target, machine_code=machine_code, **keywords)
            print(line(name, found), flush=True)
        except TensorwrightError as error:
            failed = True
            print(f"| {name} | failed: {error.message[:300]} |", flush=True)
    return int(failed)


def _on_device(names: Sequence[str], target: CudaTarget, options: Any) -> int:
    try:
        _cuda_device.require_device(target)
    except TensorwrightError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 2
    failed = bool(_cuda_device.failed_checks(target, print))
    print(f"\n| {' | '.join(_cuda_device.HEADER)} |\n|" + "---|" * len(_cuda_device.HEADER))
    for name in names:
        try:
            row = _cuda_device.measure(name, target, rounds=options.rounds, seconds=options.seconds, report=print)
        except TensorwrightError as error:
            failed = True
            print(f"| {name} | failed: {error.message[:300]} |", flush=True)
            continue
        failed = failed or not row.is_right
        print(f"| {' | '.join(row.cells())} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
