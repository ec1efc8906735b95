"""Kernels of a model compiled for a GPU: every launch, and its machine code."""

from __future__ import annotations

import dataclasses
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.catalog import CatalogModel, inputs_for
from compiler.codegen.build import build_library
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from targets.cuda.image import source_of
from targets.cuda.nvcc import KernelResources, tensor_core_instructions
from targets.cuda.target import CudaTarget

# A kernel's bound on threads, its name and its body: TVM indents bodies, and closes them at the start of a line.
_KERNEL = re.compile(
    r'"C" __global__ void (?:__launch_bounds__\((?P<threads>\d+)\) )?(?P<name>\w+)\([^)]*\) \{\n(?P<body>.*?)^\}',
    re.MULTILINE | re.DOTALL,
)
_TILE = re.compile(r"__shared__ (?:\w+\(\d+\) )?([^;]+?) a_slabs_ptr\[")


@dataclass(frozen=True)
class Launch:
    """A kernel of the source.

    Attributes:
        rule: the schedule rule that generated it.
        threads: number of threads per block; 1 if TVM writes no bound.
        tile: CUDA's name of the element type of a matmul tiled in shared memory; empty for other kernels.
        matrix_instructions: number in the machine code, or of mma_sync calls if only the source is known.
        resources: resources of its machine code; None if there is none.
    """

    name: str
    rule: str
    threads: int
    tile: str
    matrix_instructions: int
    resources: KernelResources | None


@dataclass(frozen=True)
class Examined:
    """A model's launches, from `kernels` functions; `seconds` of this process, without nvcc."""

    kernels: int
    launches: list[Launch]
    seconds: float

    @property
    def on_tensor_cores(self) -> int:
        """Number of launches with matrix instructions."""
        return sum(each.matrix_instructions > 0 for each in self.launches)

    @property
    def on_one_thread(self) -> list[Launch]:
        return [each for each in self.launches if each.threads == 1]

    @property
    def spilling(self) -> list[Launch]:
        """Launches that spill registers to memory."""
        return [each for each in self.launches if each.resources is not None and each.resources.spill_stores]


def source_arguments(model: CatalogModel) -> tuple[Any, dict[str, Any]]:
    """Return arguments of `compile` for a model in the catalog."""
    source = model.load()
    keywords: dict[str, Any] = {"shapes": model.shapes, "constants": model.constants}
    if model.reference == "torch":
        import torch

        keywords["example_inputs"] = tuple(torch.from_numpy(np.array(each)) for each in inputs_for(model).values())
    return source, keywords


def examine(
    source: Any, target: CudaTarget, *, machine_code: bool = True, precision: str = "float32", **keywords: Any
) -> Examined:
    """Compile a model's kernels, which must all be bound to threads, and inspect their machine code.

    Args:
        machine_code: False stops at CUDA source: nvcc takes most of the time.
        precision: as for `compiler.compile`.

    Raises as compiling.
    """
    start = time.process_time()
    arguments = {"shapes": None, "constants": None, "example_inputs": None, "dynamic_shapes": None, **keywords}
    model = import_model(source, **arguments)
    options = PassOptions(precision, model.checks)
    pipeline = run_pipeline(model.mod, PipelineContext(target=target, machine=target.machine, options=options))
    library = build_library(pipeline.mod, dataclasses.replace(target, simulated=True))
    text = source_of(library).text
    seconds = time.process_time() - start
    resources, instructions = _machine_code(text, target) if machine_code else ({}, {})
    launches = [_launch(match, pipeline, resources, instructions) for match in _KERNEL.finditer(text)]
    return Examined(len(pipeline.report.kernels), launches, seconds)


def _launch(
    match: re.Match[str], pipeline: PipelineResult, resources: dict[str, KernelResources], instructions: dict[str, int]
) -> Launch:
    name, body = match["name"], match["body"]
    made_by = {each.kernel: each.rule or "" for each in pipeline.report.kernels}
    # TVM names launches after their function: name_kernel, name_kernel_1, ...
    function = re.sub(r"_kernel(_\d+)?$", "", name)
    tile = _TILE.search(body)
    found = instructions[name] if instructions else body.count("mma_sync(")
    threads = int(match["threads"] or 1)
    return Launch(name, made_by.get(function, ""), threads, tile[1] if tile else "", found, resources.get(name))


def _machine_code(source: str, target: CudaTarget) -> tuple[dict[str, KernelResources], dict[str, int]]:
    """Return resources and number of matrix instructions of each launch, by name."""
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        cubin = Path(folder) / "kernels.cubin"
        resources = target.compilers().cubin(source, target.machine.compute_capability, cubin)
        return {each.kernel: each for each in resources}, tensor_core_instructions(cubin)
