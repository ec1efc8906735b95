"""Rule for attention over a cache on a processor: one kernel for a few queries, one for many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from schedules.attention.cache.decode import DecodeWriter
from schedules.attention.cache.description import ATTRIBUTE, KEY, SEQUENCES, CacheOperands, parse
from schedules.attention.cache.prompt import PromptWriter
from schedules.attention.rule import SOFTMAX_CYCLES
from schedules.attention.writer import attention_tiles
from schedules.codegen.nest import build_function
from schedules.config import Config
from schedules.errors import NotScheduledError
from schedules.gpu.machine import GpuMachine
from schedules.instructions.dot_products.operation import DOT_BF16, Instruction
from schedules.instructions.dot_products.table import halves_pay
from schedules.instructions.row_sums import has_row_sums
from schedules.ir.stages import Kernel, dtype_of
from schedules.ir.tir import PrimFunc, tirx
from schedules.machine import Machine
from schedules.rule import ScheduleRule, Workload

# Estimated cycles of attention over a cache.


@dataclass(frozen=True)
class CacheSizes:
    """Sizes of a call; the last query sees `keys` keys, each query before it one fewer."""

    batch: int
    queries: int
    heads: int
    size: int
    value_size: int
    keys: int

    @property
    def scores(self) -> float:
        """Number of scores of all queries."""
        return self.batch * self.heads * self.queries * (self.keys - (self.queries - 1) / 2)

    @property
    def operations(self) -> float:
        """Multiplications and additions of both matmuls."""
        return 2 * self.scores * (self.size + self.value_size)


def cache_cycles(sizes: CacheSizes, machine: Machine, tiles: Instruction | None) -> float:
    """Single-core cycles, in float32 vectors or by an instruction with tile accumulators."""
    rate = 1.0 if tiles is None else tiles.rate_on(machine)
    lanes = machine.lanes("float32")
    return sizes.operations / (2 * lanes * machine.fma_ports * rate) + sizes.scores / lanes * SOFTMAX_CYCLES


_FEW_ROWS = 16  # queries times heads that share a key: with fewer, packing their keys costs more than it saves


@dataclass(frozen=True)
class CacheWorkload(Workload):
    """Computation of the kernel, as JSON, and its sizes (0 where dynamic)."""

    description: str
    queries: int
    heads: int
    key_heads: int
    size: int
    dtype: str


class AttentionOverCache(ScheduleRule[CacheWorkload]):
    """Serves the kernels that carry a description of attention over a cache."""

    name: ClassVar[str] = "attention-over-cache"
    priority: ClassVar[int] = 90

    def match(self, kernel: Kernel, machine: Machine) -> CacheWorkload | None:
        text = (kernel.function.attrs or {}).get(ATTRIBUTE)
        if text is None or isinstance(machine, GpuMachine) or not has_row_sums(machine.lanes("float32")):
            return None
        operands = _operands(kernel.function)
        queries = operands.queries if isinstance(operands.queries, int) else 0
        return CacheWorkload(
            str(text), queries, operands.heads, operands.key_heads, operands.size, dtype_of(operands.buffers[KEY])
        )

    def apply(self, kernel: Kernel, workload: CacheWorkload, config: Config, machine: Machine) -> PrimFunc:
        operands = _operands(kernel.function)
        few = max(1, _FEW_ROWS // operands.group)
        tiles = prompt_tiles(operands, machine)
        narrow = tiles is not None or (operands.rounds and halves_pay(machine, DOT_BF16, in_tiles=False))
        prompt = PromptWriter(operands, machine, narrow=narrow, tiles=tiles)
        if SEQUENCES in operands:
            return build_function(kernel, [DecodeWriter(operands, machine, few).code(), prompt.code()], [])
        if isinstance(operands.queries, int):
            body = DecodeWriter(operands, machine, operands.queries) if operands.queries <= few else prompt
            return build_function(kernel, [body.code()], [])
        decode = DecodeWriter(operands, machine, few).code()
        return build_function(kernel, [tirx.IfThenElse(operands.queries <= few, decode, prompt.code())], [])


def sizes_of(function: PrimFunc) -> CacheSizes:
    """The sizes of a kernel; symbolic ones count as 1."""
    own = _operands(function)
    known = [each if isinstance(each, int) else 1 for each in (own.batch, own.queries, own.capacity)]
    return CacheSizes(known[0], known[1], int(own.heads), int(own.size), int(own.value_size), known[2])


def tiles_of(function: PrimFunc, machine: Machine) -> Instruction | None:
    """The instruction with tile accumulators for a kernel's prompts of known size, if there is one."""
    own = _operands(function)
    is_prompt = isinstance(own.queries, int) and own.queries > max(1, _FEW_ROWS // own.group)
    return prompt_tiles(own, machine) if is_prompt else None


def prompt_tiles(own: CacheOperands, machine: Machine) -> Instruction | None:
    """The tile instruction for prompts, if operands may be rounded to bfloat16 and the machine has a faster one."""
    tiles = attention_tiles(machine, DOT_BF16)
    return tiles if tiles is not None and own.rounds and tiles.rate_on(machine) > 1 else None


def _operands(function: PrimFunc) -> CacheOperands:
    description = parse(str(function.attrs[ATTRIBUTE]))
    buffers = [each for each in function.params if tirx.is_buffer_var(each)]
    if len(buffers) != len(description.operands) + 1:
        raise NotScheduledError("its parameters are not those that its description names")
    return CacheOperands(description, buffers[:-1], buffers[-1])
