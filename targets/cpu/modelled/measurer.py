"""The measure of processors that are not at hand: cycles of the generated code and of its traffic between caches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from schedules.machine import Machine
from targets.cpu.modelled.accesses import accesses_of
from targets.cpu.modelled.caches import Traffic
from targets.cpu.modelled.pipeline import Core, analyse
from targets.cpu.modelled.tools import find_tools
from targets.measure import Estimate, MeasureKind, Measurer, ScheduledKernel, Unit

_FILE = Path(__file__).with_name("processors.json")
_EXPOSED = 0.5  # of the time that lines take between caches, beside the instructions that run meanwhile
_LAUNCH_SECONDS = 3e-6  # of a parallel loop, until all cores have begun and ended


@dataclass(frozen=True)
class Processor:
    """What the model knows of a processor beside the machine's description.

    Attributes:
        scheduled_as: whose scheduling model LLVM has for it: its own, or that of the core it derives from.
        clock_ghz: the nominal clock, by which cycles become seconds.
        l1_rate, l2_rate: bytes a cycle that enter the first and the second cache of a core from the next one.
        halved: as of `pipeline.Core`.
    """

    scheduled_as: str
    clock_ghz: float
    l1_rate: float
    l2_rate: float
    halved: bool = False


@cache
def processors() -> dict[str, Processor]:
    """The processors that are modelled, by LLVM's name."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Processor(**entry) for name, entry in data.items()}


class PipelineMeasurer(Measurer):
    """Models a processor that LLVM generates code for."""

    kind: MeasureKind = "modelled"
    unit: Unit = "s"
    margin = 0.1

    def __init__(self, triple: str, mcpu: str, machine: Machine) -> None:
        self._machine, self._processor = machine, processors()[mcpu]
        self._core = Core(triple, mcpu, self._processor.scheduled_as, self._processor.halved)
        self.name = f"llvm-mca+caches {mcpu}"

    def version(self) -> str:
        return find_tools().version

    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        """Seconds of one call. Raises ModelError where a tool fails or the control flow cannot be followed."""
        machine, processor = self._machine, self._processor
        text = str(kernel.build().inspect_source("ll"))
        pipeline = analyse(text, self._core, machine.cores, find_tools())
        accesses = accesses_of(kernel.function)
        traffic = Traffic(accesses, machine.cores)
        l1 = sum(traffic.into(machine.l1_bytes).values()) / processor.l1_rate
        l2 = sum(traffic.into(machine.l2_bytes).values()) / processor.l2_rate
        far = self._far_bytes(kernel, traffic, accesses.parameters) / (machine.memory_rate / machine.cores)
        cycles = pipeline.cycles + _EXPOSED * (l1 + l2 + far)
        hertz = 1e9 * processor.clock_ghz
        seconds = cycles / hertz + _LAUNCH_SECONDS * (pipeline.launches if machine.cores > 1 else 0)
        parts = {
            "instructions": pipeline.instructions,
            "pipeline": pipeline.cycles / hertz,
            "into L1": l1 / hertz,
            "into L2": l2 / hertz,
            "memory": far / hertz,
        }
        return Estimate(seconds, parts)

    def _far_bytes(self, kernel: ScheduledKernel, traffic: Traffic, parameters: list[int | None]) -> float:
        """Bytes that come from memory: weights, where the model's do not stay in the caches between two calls."""
        near = self._machine.l3_bytes + self._machine.l2_bytes * self._machine.cores
        if kernel.constant_bytes <= near:
            return 0.0
        touched = traffic.touched()
        return sum(touched.get(number, 0.0) for number, place in enumerate(parameters) if place in kernel.constants)
