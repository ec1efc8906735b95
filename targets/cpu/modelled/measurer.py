"""The measure of processors that are not at hand: cycles of the generated code and of its traffic between caches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from schedules.machine import Machine
from targets.cpu.modelled.caches import Accesses, Traffic, accesses_of
from targets.cpu.modelled.pipeline import Core, analyse
from targets.cpu.modelled.tools import find_tools
from targets.measure import Estimate, MeasureKind, Measurer, ScheduledKernel, Unit

_FILE = Path(__file__).with_name("processors.json")
_REVISION = 3  # of this model: count it up when its numbers change
_LAUNCH_SECONDS = 3e-6  # of a parallel loop, until all cores have begun and ended


@dataclass(frozen=True)
class Processor:
    """Facts of a processor that the model needs beside the machine's description.

    Attributes:
        scheduled_as: whose scheduling model LLVM has for it: its own, or that of the core it derives from.
        clock_ghz: the nominal clock, by which cycles become seconds.
        l1_rate, l2_rate: bytes a cycle that enter the first and the second cache of a core from the next one.
        exposed: the share of what is not the longest (instructions, or lines on their way into one of the caches) that
            nothing else hides.
        halved: see `pipeline.Core`.
    """

    scheduled_as: str
    clock_ghz: float
    l1_rate: float
    l2_rate: float
    exposed: float = 0.1
    halved: bool = False


@cache
def processors() -> dict[str, Processor]:
    """The processors that are modelled, by LLVM's name."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Processor(**entry) for name, entry in data.items()}


class PipelineMeasurer(Measurer):
    """Models a processor that LLVM generates code for.

    Its margin is what `python -m benchmarks.tuner modelled` found on Zen 5: all configs that were modelled to be faster
    than the default by as much were faster. From one algorithm to another it errs by up to 40 %.
    """

    kind: MeasureKind = "modelled"
    unit: Unit = "s"
    margin = 0.1
    margin_of_alternatives = 0.4

    def __init__(self, triple: str, mcpu: str, machine: Machine) -> None:
        self._machine, self._processor = machine, processors()[mcpu]
        self._core = Core(triple, mcpu, self._processor.scheduled_as, self._processor.halved)
        self.name = f"llvm-mca+caches {mcpu}"

    def version(self) -> str:
        return f"{find_tools().version}, model {_REVISION}"

    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        """Seconds of one call. Raises ModelError where a tool fails or the control flow cannot be followed."""
        machine, processor = self._machine, self._processor
        text = str(kernel.build().inspect_source("ll"))
        pipeline = analyse(text, self._core, machine.cores, find_tools())
        accesses = accesses_of(kernel.function)
        traffic = Traffic(accesses, machine.cores)
        l1 = sum(traffic.into(machine.l1_bytes).values()) / processor.l1_rate
        l2 = self._cycles_into_l2(kernel, traffic, accesses)
        far = self._far_bytes(kernel, traffic, accesses) / machine.memory_rate
        together = (pipeline.cycles, l1, l2, far)
        cycles = max(together) + processor.exposed * (sum(together) - max(together))
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

    def _cycles_into_l2(self, kernel: ScheduledKernel, traffic: Traffic, accesses: Accesses) -> float:
        """From a third cache that the cores share, or from memory, which sends once what all cores read: weights."""
        machine, into = self._machine, traffic.into(self._machine.l2_bytes)
        if machine.l3_bytes:
            return sum(into.values()) / self._processor.l2_rate
        places = accesses.parameters
        nbytes = sum(each * (1 if places[at] in kernel.constants else machine.cores) for at, each in into.items())
        return nbytes / machine.memory_rate

    def _far_bytes(self, kernel: ScheduledKernel, traffic: Traffic, accesses: Accesses) -> float:
        """Bytes that come from memory, for all cores: weights, where the model's do not stay in the caches between two
        calls. What several cores read comes once."""
        near = self._machine.l3_bytes + self._machine.l2_bytes * self._machine.cores
        if kernel.constant_bytes <= near:
            return 0.0
        touched, cores = traffic.touched(), self._machine.cores
        return sum(
            min(cores * touched.get(number, 0.0), accesses.nbytes[number])
            for number, parameter in enumerate(accesses.parameters)
            if parameter in kernel.constants
        )
