"""Simulates on the CPU a module whose kernels are for a device that this machine lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.artifact import Artifact
from compiler.runtime.device import Device
from compiler.runtime.module import Module

if TYPE_CHECKING:
    from schedules.ir.tvm_types import RuntimeModule

Array = np.ndarray


class SimulatedDevice(Device):
    """The CPU in place of a device; `simulator.load` provides the kernels."""

    def __init__(self, simulator: Any) -> None:
        self._simulator = simulator

    def load(self, library: bytes | memoryview) -> RuntimeModule:
        return self._simulator.load(library)


class SimulatedModule:
    """A module on a simulated device: correct results, meaningless timings."""

    def __init__(self, artifact: Artifact, simulator: Any) -> None:
        """Compile the kernels for this CPU.

        Raises:
            targets.TargetError: the compiler is missing, or rejects the kernels.
        """
        self._module = Module(artifact, threads=1, device=SimulatedDevice(simulator))

    def run(self, inputs: Mapping[str, Array], *, threads: int = 1) -> dict[str, Array]:
        """The outputs by name."""
        return self._module.run(inputs)
