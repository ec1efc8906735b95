"""The function called by compiled modules: here the simulator (for a U85, whose commands cannot be simulated, Arm's
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
    """Register the function that compiled modules call."""
    import tvm_ffi

    tvm_ffi.register_global_func(FUNCTION, _run, override=True)


def _run(*tensors: RuntimeTensor) -> None:
    """Called by a module with the program, its inputs, and the output tensors."""
    program = _program(np.from_dlpack(tensors[0]).tobytes())
    count = len(program.inputs)
    inputs = [np.from_dlpack(tensor) for tensor in tensors[1 : 1 + count]]
    for tensor, result in zip(tensors[1 + count :], execute(program, inputs), strict=True):
        # Not through an array that shares the tensor's memory: numpy before 2.2 cannot write to these.
        tensor.copyfrom(result.reshape([int(size) for size in tensor.shape]))


@lru_cache(maxsize=8)
def _program(data: bytes) -> Program:
    return Program.from_bytes(data)


def execute(program: Program, inputs: Sequence[Array], executor: Executor | None = None) -> list[Array]:
    """The int8 outputs (flat) of a program: its commands run by the simulator, or its graph if it has one. Raises
    TargetError if the inputs do not match the program, or the reference model does not support the graph."""
    if program.graph:
        outputs = run_graph(program.graph, inputs)
        if outputs is None:
            raise TargetError("the TOSA reference model rejects a graph of the module", "please report the model")
        return outputs
    regions = {region: np.zeros(size, np.uint8) for region, size in program.scratch.items()}
    regions[program.weight_region] = np.frombuffer(program.weights, np.uint8)
    for place, array in zip(program.inputs, inputs, strict=True):
        data = np.ascontiguousarray(array).view(np.uint8).ravel()
        if len(data) != place.size:
            raise TargetError(f"an input of a segment has {len(data)} bytes, but its program expects {place.size}")
        regions[place.region][place.offset : place.offset + place.size] = data
    runner = executor if executor is not None else Executor(accelerators()[program.accelerator])
    runner.run(program.commands, Memory(regions))
    return [
        regions[place.region][place.offset : place.offset + place.size].copy().view(np.int8)
        for place in program.outputs
    ]


# TOSA graphs in Arm's reference model: the expected results of Vela's commands, and the way a U85's modules run here.


def run_graph(tosa: bytes, inputs: Sequence[Array]) -> list[Array] | None:
    """The outputs (flat) of a graph; None if the model does not support it. Inputs have the graph's shapes."""
    import tosa_reference_model

    outputs, status = tosa_reference_model.run(tosa, list(inputs), verbosity="NONE")
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        return None
    return [np.asarray(each).ravel() for each in outputs]
