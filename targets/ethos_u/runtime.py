"""The function that compiled modules call: here the simulator (of a U85's, whose commands nothing here executes, Arm's
reference model of TOSA), on a device Arm's driver."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from targets.errors import TargetError
from targets.ethos_u.accelerators import accelerators
from targets.ethos_u.program import Program
from targets.ethos_u.simulator.memory import Memory
from targets.ethos_u.simulator.operations import Executor

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeTensor


FUNCTION = "tensorwright.ethos_u.run"
Array = np.ndarray


def register() -> None:
    """Make the function known that compiled modules call."""
    import tvm_ffi

    tvm_ffi.register_global_func(FUNCTION, _run, override=True)


def _run(*tensors: RuntimeTensor) -> None:
    """Called by a module: the program, its inputs, and the tensors to fill."""
    program = _program(np.from_dlpack(tensors[0]).tobytes())
    count = len(program.inputs)
    inputs = [np.from_dlpack(tensor) for tensor in tensors[1 : 1 + count]]
    for tensor, result in zip(tensors[1 + count :], execute(program, inputs), strict=True):
        # Not through an array that shares the tensor's memory: of such a one numpy before 2.2 can only read.
        tensor.copyfrom(result.reshape([int(size) for size in tensor.shape]))


@lru_cache(maxsize=8)
def _program(data: bytes) -> Program:
    return Program.from_bytes(data)


def execute(program: Program, inputs: Sequence[Array], executor: Executor | None = None) -> list[Array]:
    """The int8 outputs (flat) of a program: of its commands by the simulator, or of its graph where it carries one.

    Raises:
        TargetError: the inputs are not the program's, or the reference model does not take the graph.
    """
    if program.graph:
        outputs = run_graph(program.graph, inputs)
        if outputs is None:
            raise TargetError("the TOSA reference model does not take a graph of the module", "please report the model")
        return outputs
    regions = {region: np.zeros(size, np.uint8) for region, size in program.scratch.items()}
    regions[program.weight_region] = np.frombuffer(program.weights, np.uint8)
    for place, array in zip(program.inputs, inputs, strict=True):
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        if len(data) != place.size:
            raise TargetError(f"an input of a segment has {len(data)} bytes, and its program takes {place.size}")
        regions[place.region][place.offset : place.offset + place.size] = data
    runner = executor if executor is not None else Executor(accelerators()[program.accelerator])
    runner.run(program.commands, Memory(regions))
    return [
        regions[place.region][place.offset : place.offset + place.size].copy().view(np.int8)
        for place in program.outputs
    ]


# TOSA graphs in Arm's reference model: what Vela's commands have to compute, and how a U85's modules run here.


def run_graph(tosa: bytes, inputs: Sequence[Array]) -> list[Array] | None:
    """The outputs (flat) of a graph; None where the model does not take it. Inputs have the shapes that it says."""
    import tosa_reference_model

    outputs, status = tosa_reference_model.run(tosa, list(inputs), verbosity="NONE")
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        return None
    return [np.asarray(each).ravel() for each in outputs]
