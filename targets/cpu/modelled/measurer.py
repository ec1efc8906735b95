"""Cost model for processors that are not available: cycles of the generated code and of its traffic between caches.

Instruction cycles are those of one core, with every load hitting the L1 cache. LLVM's comments in the assembly name the
LLVM IR block that each machine block comes from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from schedules.machine import Machine
from targets.cpu.modelled import ir
from targets.cpu.modelled.caches import Accesses, Traffic, accesses_of
from targets.cpu.modelled.frequencies import frequencies
from targets.cpu.modelled.ir import flow_of
from targets.cpu.modelled.tools import LlvmTools, ModelError, find_tools
from targets.measure import Estimate, MeasureKind, Measurer, ScheduledKernel, Unit

_FILE = Path(__file__).with_name("processors.json")
_REVISION = 3  # of this model: increment it when its numbers change
_LAUNCH_SECONDS = 3e-6  # per parallel loop, until all cores have started and finished


@dataclass(frozen=True)
class Processor:
    """Processor data that the model needs in addition to the machine's description.

    Attributes:
        scheduled_as: the processor whose LLVM scheduling model is used: itself, or the core it derives from.
        clock_ghz: the nominal clock, which converts cycles to seconds.
        l1_rate, l2_rate: bytes per cycle that enter the L1 and the L2 cache of a core from the next one.
        exposed: the fraction of all but the longest part (instructions, or lines moving into one of the caches) that is
            not hidden.
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
    """The modeled processors, by LLVM's name."""
    data = json.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Processor(**entry) for name, entry in data.items()}


class PipelineMeasurer(Measurer):
    """Models a processor that LLVM generates code for.

    Its margin was measured by `python -m benchmarks.tuner modelled` on Zen 5: all configs modeled to be faster than the
    default by at least that much were faster. Between algorithms it errs by up to 40 %.
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
        """Seconds of one call. Raises ModelError if a tool fails or the control flow cannot be followed."""
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
        """Cycles of traffic from a shared L3 cache, or from memory, which sends data read by all cores (weights) only
        once."""
        machine, into = self._machine, traffic.into(self._machine.l2_bytes)
        if machine.l3_bytes:
            return sum(into.values()) / self._processor.l2_rate
        parameters = accesses.parameters
        nbytes = sum(each * (1 if parameters[at] in kernel.constants else machine.cores) for at, each in into.items())
        return nbytes / machine.memory_rate

    def _far_bytes(self, kernel: ScheduledKernel, traffic: Traffic, accesses: Accesses) -> float:
        """Bytes from memory, for all cores: weights, if the model's weights do not stay in the caches between two
        calls.
        Data read by several cores counts once."""
        near = self._machine.l3_bytes + self._machine.l2_bytes * self._machine.cores
        if kernel.constant_bytes <= near:
            return 0.0
        touched, cores = traffic.touched(), self._machine.cores
        return sum(
            min(cores * touched.get(number, 0.0), accesses.nbytes[number])
            for number, parameter in enumerate(accesses.parameters)
            if parameter in kernel.constants
        )


_NEGLIGIBLE = 0.002  # fraction of the instructions run: smaller regions count at the mean rate of the others
_FEW, _MANY = 10, 100  # simulated iterations of a region: long ones reach a steady state sooner
_LONG = 250  # instructions
_SELDOM = 0.5  # fraction of a loop's iterations: blocks that run less often are separate regions


@dataclass(frozen=True)
class Region:
    """Consecutive instructions of one iteration of a loop, how often they run, and the cycles they take.

    The code of one iteration is one region, so that iterations overlap as far as their dependencies allow, like in the
    processor.
    """

    loop: str
    instructions: tuple[str, ...]
    count: float
    cycles: float = 0.0


@dataclass(frozen=True)
class Pipeline:
    """The cost of a kernel's instructions.

    Attributes:
        cycles: cycles of one call on the busiest core.
        instructions: instructions executed in these.
        launches: launches of parallel loops.
        regions: distribution of the cycles.
    """

    cycles: float
    instructions: float
    launches: float
    regions: tuple[Region, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Core:
    """The core that code is generated for, and whose cycles are counted.

    Attributes:
        triple, mcpu: LLVM's names of the platform and the processor.
        scheduled_as: the processor whose scheduling model is used.
        halved: whether its 512-bit vectors are counted as 256-bit ones: the model's processor, its predecessor,
        executes
            256-bit vectors the way this one executes 512-bit ones.
    """

    triple: str
    mcpu: str
    scheduled_as: str
    halved: bool = False


def analyse(text: str, core: Core, cores: int, tools: LlvmTools) -> Pipeline:
    """The cost of a kernel. Raises ModelError if a tool failed, or the control flow cannot be followed.

    Args:
        text: its LLVM IR, optimized.
        cores: number of cores that share parallel loops.
    """
    functions = ir.parse(text)
    counts = frequencies(functions, cores)
    if not counts:
        raise ModelError("no kernel was found in its LLVM IR")
    blocks = parse(tools.compile(text, core.mcpu), functions)
    loops = {
        name: {block: loop.header for block, loop in flow_of(functions[name]).innermost.items()} for name in counts
    }
    regions = list(_regions(blocks, counts, loops))
    total = sum(region.count * len(region.instructions) for region in regions)
    hot = [region for region in regions if region.count * len(region.instructions) > _NEGLIGIBLE * total]
    texts = ["\n".join(_modelled(region.instructions, core)) for region in hot]
    iterations = [_FEW if len(region.instructions) > _LONG else _MANY for region in hot]
    cycles = tools.cycles(texts, core.triple, core.scheduled_as, iterations)
    timed = tuple(replace(region, cycles=each) for region, each in zip(hot, cycles, strict=True))
    counted = sum(region.count * len(region.instructions) for region in timed)
    spent = sum(region.count * region.cycles for region in timed)
    launches = sum(counts[name].get(functions[name].entry, 0.0) for name in counts if "parallel_lambda" in name)
    return Pipeline(spent * total / counted, total, launches, timed)


def _regions(
    blocks: list[MachineBlock], counts: dict[str, dict[str, float]], loops: dict[str, dict[str, str]]
) -> Iterator[Region]:
    """The code in most iterations of each loop, in order, as one region; the rest block by block."""
    joined: dict[tuple[str, str], list[tuple[MachineBlock, float]]] = {}
    for block in blocks:
        block_counts = counts.get(block.function, {})
        count = block_counts.get(block.source, 0.0)
        header = loops.get(block.function, {}).get(block.source, "")
        often = block_counts.get(header, 1.0) if header else max(block_counts.values(), default=1.0)
        if count and header and count >= _SELDOM * often:
            joined.setdefault((block.function, header), []).append((block, count))
        elif count:
            yield Region(block.source, tuple(block.instructions), count)
    for (_, header), parts in joined.items():
        instructions = tuple(each for block, _ in parts for each in block.instructions)
        mean = sum(count * len(block.instructions) for block, count in parts) / len(instructions)
        yield Region(header, instructions, mean)


_PREFETCHES = ("prefetch", "prfm", "prfum")
_LESS = {"{1to16}": "{1to8}", "{1to8}": "{1to4}"}


def _modelled(instructions: tuple[str, ...], core: Core) -> list[str]:
    """The code for llvm-mca, without prefetches, which it would treat as barriers that no load passes."""
    kept = [each for each in instructions if not each.startswith(_PREFETCHES)]
    return _halved(kept) if core.halved else kept


def _halved(instructions: list[str]) -> list[str]:
    """x86 instructions on zmm converted to ymm; those that move between the two are unchanged.

    A broadcast from memory is a load: LLVM's models also occupy a shuffle unit with it, unlike AMD's processors.
    """

    def half(text: str) -> str:
        if "zmm" not in text or "ymm" in text:
            return text
        text = re.sub(r"^vbroadcasts[sd](?=\t.*\()", "vmovups", text)
        return re.sub(r"\{1to\d+\}", lambda found: _LESS.get(found[0], found[0]), text.replace("zmm", "ymm"))

    return [half(each) for each in instructions]


_FUNCTION = re.compile(r"^([\w.$]+):")
_BLOCK = re.compile(r"^(?:(\.LBB\d+_\d+):|\s*(?:#|//) %bb\.\d+:)(?:\s*(?:#|//) (?:%(\S+))?)?")
_INSTRUCTION = re.compile(r"^\t([a-z][\w.]*)(?:\s+(.*))?$")
_COMMENT = re.compile(r"\s*(?:#|//)(?=\s| ).*$")
_END = re.compile(r"^\.Lfunc_end\d+:")


@dataclass
class MachineBlock:
    """A machine block: its label ("" if nothing jumps to it), the IR block it comes from, its instructions."""

    function: str
    label: str
    source: str
    instructions: list[str] = field(default_factory=list)


def parse(text: str, functions: Mapping[str, object]) -> list[MachineBlock]:
    """The machine blocks of the functions in an assembly text, in order. A block without a named source, added by code
    generation, gets that of the block before it."""
    blocks: list[MachineBlock] = []
    function, source = "", ""
    for line in text.splitlines():
        if _END.match(line):
            function = ""
        elif match := _BLOCK.match(line):
            if function:
                source = match[2] or source
                blocks.append(MachineBlock(function, match[1] or "", source))
        elif (match := _FUNCTION.match(line.removeprefix(".L") if line.startswith(".L__") else line)) is not None:
            if match[1] in functions:
                function, source = match[1], ""
        elif function and blocks and (match := _INSTRUCTION.match(line)):
            blocks[-1].instructions.append(_COMMENT.sub("", line.strip()))
    return [block for block in blocks if block.instructions]
