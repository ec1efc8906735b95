"""Kernels for NVIDIA graphics processors: what the compiler makes of each model, and, where there is a device, numbers
and times.

    python -m benchmarks.cuda                         # every model of the catalog, for sm_75
    python -m benchmarks.cuda resnet18 --target h100
    python -m benchmarks.cuda --no-nvcc               # fast: that every kernel is bound; source, no machine code

Without a device nothing is run or timed: kernels are compiled, and registers, spills and matrix instructions counted.
With one, outputs are compared with the processor's, and runs are timed in turns with torch.compile and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import compiler
import targets
from benchmarks.catalog import CATALOG, CatalogModel, inputs_for
from compiler.build import build_library
from compiler.errors import TensorwrightError
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from targets import cuda_device
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


def run_on_device(name: str, model: CatalogModel, target: CudaTarget) -> str:
    """Numbers against the processor's, and times in turns with what else is installed."""
    source, keywords = source_arguments(model)
    inputs = list(inputs_for(model, sizes=model.sizes[0] or None).values())
    ours = compiler.compile(source, target, records=False, **keywords)
    host = compiler.compile(source, "host", records=False, **keywords)
    pairs = zip(ours.run(inputs).values(), host.run(inputs).values(), strict=True)
    difference = max(float(np.abs(a.astype(np.float64) - b).max(initial=0.0)) for a, b in pairs)
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: ours.run(inputs)}
    if model.reference == "torch":
        import torch

        compiled: Any = torch.compile(source.cuda())
        placed = [torch.from_numpy(each).cuda() for each in inputs]

        def by_torch() -> None:
            compiled(*placed)
            torch.cuda.synchronize()

        runs["torch.compile"] = by_torch
    else:
        import onnxruntime

        session: Any = onnxruntime.InferenceSession(str(source), providers=["CUDAExecutionProvider"])
        named = dict(zip([each.name for each in session.get_inputs()], inputs, strict=True))
        runs["ONNX Runtime"] = lambda: session.run(None, named)
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(30):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            times[key].append(1e3 * (time.perf_counter() - start))
    shown = ", ".join(f"{key} {float(np.median(each)):.3f} ms" for key, each in times.items())
    return f"{name}: largest difference {difference:.3g}; {shown}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="names of the catalog; all unless given")
    parser.add_argument("--target", default="t4", help="a CUDA target")
    parser.add_argument("--no-nvcc", action="store_true", help="stop at CUDA source")
    options = parser.parse_args()
    target = targets.get(options.target)
    if not isinstance(target, CudaTarget):
        raise SystemExit(f"{options.target} is no CUDA target")
    if not cuda_device.compute_capabilities():
        print("No NVIDIA graphics processor here: kernels are compiled and examined; nothing is run or timed.\n")
    print(_HEADER + "\n|---|---|---|---|---|---|---|---|")
    for name in options.models or CATALOG:
        try:
            source, keywords = source_arguments(CATALOG[name])
            found = examine(source, target, machine_code=not options.no_nvcc, **keywords)
            print(line(name, found), flush=True)
            if target.fits_this_machine():
                print(run_on_device(name, CATALOG[name], target), flush=True)
        except TensorwrightError as error:
            print(f"| {name} | failed: {error.message[:300]} |", flush=True)


if __name__ == "__main__":
    main()
