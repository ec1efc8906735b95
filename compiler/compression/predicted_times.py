"""Predicted times of kernels on a described machine, without running anything: compression decides by these times, so
that the same call returns the same model however busy the machine is.

A module is lowered to kernels, whose schedule rules and operations are then known. A kernel's cycles are the larger of
its arithmetic and its memory traffic, plus a fraction of the smaller. The factors were fitted once to 197 layers of the
catalog's nets in float32 and int8 (Zen 5, AVX-512 with VNNI, one thread, the least of 40 interleaved runs each): half
of the predictions are within 4 %, nine in ten within 30 %. Those without AVX-512 and VNNI come from 48 layers compiled
for x86-64-v3 there. `python -m benchmarks.layer_times` compares both on other machines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir import IRModule

import targets
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.attribution import kind_of
from compiler.support.compilation import one_at_a_time
from compiler.support.operation_count import OperationCount, count_kernels
from schedules.attention.cache.rule import CacheWorkload, cache_cycles, sizes_of, tiles_of
from schedules.attention.rule import Attention, AttentionInt8, AttentionWorkload, cycles_in_tiles
from schedules.conv.dot import CONV_DOT, CONV_TILES
from schedules.conv.workload import DotWorkload, TilesWorkload
from schedules.instructions.dot_products.operation import DOT_BF16, Instruction
from schedules.instructions.dot_products.table import tile_instruction, vector_instructions
from schedules.ir.numbers import ceil_div
from schedules.ir.stages import Kernel
from schedules.ir.tvm_types import Expr, Type
from schedules.machine import Machine, dtype_bits
from schedules.matmul.blocks.expressions import BlockFormat
from schedules.matmul.blocks.rule import BlockWorkload, block_cycles
from schedules.matmul.blocks.writer import FEW_ROWS, block_tiles
from schedules.matmul.rounded_bf16 import MatmulGatedBf16, MatmulRoundedBf16
from schedules.matmul.words import KINDS
from schedules.selection.registry import rules

_HERTZ = 3e9  # a clock that turns cycles into seconds; it cancels out of every comparison
_OVERLAP = 0.3  # fraction of the smaller of arithmetic and memory traffic that is not hidden by the other
# Measured cycles of a multiply-add, or of two other operations, relative to the units' peak, by rule.
_ARITHMETIC = {
    "conv-direct": 1.02,
    "conv-folded": 1.27,
    "conv-winograd": 0.74,  # additions of the transforms are cheaper than multiply-adds
    "conv-dot": 1.01,
    "conv-winograd-integer": 0.53,
    "matmul": 1.02,
    **dict.fromkeys(KINDS.values(), 1.02),
    "elementwise": 1.0,
}
_DIRECT_OF_FEW_REGISTERS = 1.28  # without AVX-512 tiles are smaller
_DEPTHWISE = 0.84
_DEPTHWISE_INTEGERS, _DEPTHWISE_PAIRS = 0.72, 1.3  # with VNNI and without
_ELSEWHERE = 2.0  # rules that were not measured: sparse matmuls, the general one
_MATMUL_OPERATIONS = {name: operation for operation, name in KINDS.items()} | {
    MatmulRoundedBf16.name: DOT_BF16,
    MatmulGatedBf16.name: DOT_BF16,
}
_ATTENTION = {each.name: each for each in (Attention(), AttentionInt8())}
_TILES = 1.1  # relative to the cycles from the nominal rate
_PAIR_PRODUCTS = 1.5  # without byte dot products: two `vpmaddwd`, and conversions and additions
# Cycles to scale, round and store a vector of results as bytes.
_ROUNDING = 2.1
# Cycles per byte in the caches of a core, and additional cycles for the fraction outside them.
_NEAR, _FAR_RESULT, _FAR_WEIGHTS = 0.0385, 0.0357, 0.136


@dataclass(frozen=True)
class KernelTime:
    """One call of a kernel.

    Attributes:
        kind: kind of work, one of `attribution.KINDS`.
        spread: relative excess of the median of several measurements over the shortest; 0 for a prediction.
        tiles: for a prediction, the instruction with tile accumulators, if the kernel uses one.
        operations: arithmetic operations of a prediction; 0 if unknown.
        name: kernel name of a prediction.
    """

    kind: str
    seconds: float
    spread: float = 0.0
    tiles: str = ""
    operations: float = 0.0
    name: str = ""


class KernelClock(Protocol):
    """Predicts kernel times."""

    def __call__(self, mods: Sequence[IRModule]) -> list[list[KernelTime]]:
        """Calls of a run of each module, in their order."""


def is_calibrated(target: targets.Target) -> bool:
    """True if times can be predicted for a target: only for x86-64, where layers were measured."""
    return isinstance(target.machine, Machine) and target.machine.architecture == "x86_64"


class PredictedClock:
    """Predicted times on one core of a target's machine, for models compiled in a given precision."""

    def __init__(self, target: targets.Target, precision: str = "float32") -> None:
        self._target, self._options = target, PassOptions(precision)

    @one_at_a_time
    def __call__(self, mods: Sequence[IRModule]) -> list[list[KernelTime]]:
        """Raises TensorwrightError if a pass fails."""
        return [list(self._times(mod)) for mod in mods]

    def _times(self, mod: IRModule) -> Iterator[KernelTime]:
        machine: Machine = self._target.machine
        context = PipelineContext(target=self._target, machine=machine, options=self._options)
        lowered = run_pipeline(mod, context, until="fuse").mod
        counts = count_kernels(lowered)
        functions = {
            str(variable.name_hint): function
            for variable, function in lowered.functions_items()
            if isinstance(function, tirx.PrimFunc)
        }
        known: dict[str, KernelTime] = {}
        for name in _calls(lowered):
            if name not in known:
                count, function = counts.get(name), functions[name]
                cycles, operations = kernel_cycles(function, count, machine), _operations(count)
                rule, workload = _rule_of(function, machine)
                tiles = _tiles_of(rule, workload, machine)
                if isinstance(workload, AttentionWorkload) and tiles is not None:
                    operations = workload.operations
                elif isinstance(workload, CacheWorkload):
                    tiles, operations = tiles_of(function, machine), sizes_of(function).operations
                known[name] = KernelTime(
                    kind_of(name),
                    cycles / _HERTZ,
                    tiles="" if tiles is None else tiles.name,
                    operations=operations or 0.0,
                    name=name,
                )
            yield known[name]


def _calls(mod: IRModule) -> list[str]:
    """Names of the kernels that `main` calls, in order."""
    names: list[str] = []

    def visit(node: Expr) -> None:
        if isinstance(node, tvm.ir.Call) and isinstance(node.op, tvm.ir.Op) and node.op.name == "relax.call_tir":
            names.append(str(node.args[0].name_hint))

    relax.analysis.post_order_visit(mod["main"], visit)
    return names


def kernel_cycles(function: tirx.PrimFunc, count: OperationCount | None, machine: Machine) -> float:
    """Single-core cycles of a kernel of known sizes before it is scheduled. `count`: number of its operations; if None,
    one for each element that it reads or writes."""
    tensors = [parameter.ty for parameter in function.params if isinstance(parameter.ty, tirx.BufferType)]
    sizes = [(_elements(tensor), str(tensor.dtype)) for tensor in tensors]
    rule, workload = _rule_of(function, machine)
    operations = _operations(count) or float(sum(elements for elements, _ in sizes))
    arithmetic = _padded(operations, workload) / (2 * machine.lanes("float32") * machine.fma_ports)
    if isinstance(workload, BlockWorkload) and workload.rounded:
        arithmetic = _of_blocks(rule, workload, machine)
    elif isinstance(workload, AttentionWorkload) and (tiles := _tiles_of(rule, workload, machine)) is not None:
        arithmetic = cycles_in_tiles(workload, tiles, machine)
    elif isinstance(workload, CacheWorkload):
        arithmetic = cache_cycles(sizes_of(function), machine, tiles_of(function, machine))
    else:
        arithmetic *= _arithmetic_factor(rule, workload, machine)
    results, result_type = sizes[-1]
    if dtype_bits(result_type) == 8:
        arithmetic += results / machine.lanes("float32") * _ROUNDING
    moved = _movement([elements * dtype_bits(dtype) / 8 for elements, dtype in sizes], machine)
    return max(arithmetic, moved) + _OVERLAP * min(arithmetic, moved)


def _operations(count: OperationCount | None) -> float | None:
    counted = re.fullmatch(r"\d+", count.formula) if count is not None else None
    return float(counted[0]) if counted else None


def _elements(tensor: Type) -> int:
    return int(np.prod([int(size) for size in tensor.shape], dtype=np.int64))


def _rule_of(function: tirx.PrimFunc, machine: Machine) -> tuple[str, Any]:
    """The rule that schedules a kernel, and its workload."""
    kernel = Kernel.of(function)
    for rule in rules():
        workload = rule.match(kernel, machine)
        if workload is not None:
            return rule.name, workload
    return "", None


def _padded(operations: float, workload: object) -> float:
    """Operations including those on channels that pad a group of an instruction."""
    if not isinstance(workload, DotWorkload):
        return operations
    channels = max(workload.channels // workload.groups, 1)
    return operations * ceil_div(channels, workload.group) * workload.group / channels


def _arithmetic_factor(rule: str, workload: Any, machine: Machine) -> float:
    factor = _ARITHMETIC.get(rule, _ELSEWHERE)
    products = vector_instructions(machine, "uint8", "int8")
    if rule == "conv-direct" and machine.vector_registers < 32:
        return _DIRECT_OF_FEW_REGISTERS
    if rule == "conv-depthwise":
        if getattr(workload, "source_dtype", "float32") == "float32":
            return _DEPTHWISE
        return _DEPTHWISE_INTEGERS if products else _DEPTHWISE_PAIRS
    tiles = _tiles_of(rule, workload, machine)
    if tiles is not None:
        return _TILES / (tiles.convolution_rate_on if rule == CONV_TILES else tiles.rate_on)(machine)
    operation = workload.operation if rule == CONV_DOT else _MATMUL_OPERATIONS.get(rule)
    if operation is not None:
        found = vector_instructions(machine, operation.a, operation.b)
        factor /= found[0].rate_on(machine) if found else _PAIR_PRODUCTS
    return factor


def _of_blocks(rule: str, work: BlockWorkload, machine: Machine) -> float:
    """Cycles of a matmul of quantized rows with a block-quantized weight."""
    layout = BlockFormat.of_text(work.layout)
    in_tiles = _tiles_of(rule, work, machine) is not None
    return block_cycles(work.rows, work.columns, work.depth, layout, machine, in_tiles=in_tiles)


def _tiles_of(rule: str, workload: object, machine: Machine) -> Instruction | None:
    """The instruction with tile accumulators that a kernel uses, or None."""
    if isinstance(workload, BlockWorkload):
        layout = BlockFormat.of_text(workload.layout)
        return block_tiles(layout, machine) if workload.rounded and workload.rows > FEW_ROWS else None
    if isinstance(workload, AttentionWorkload):
        return _ATTENTION[rule].tiles(workload, machine)
    operation = workload.operation if isinstance(workload, TilesWorkload) else _MATMUL_OPERATIONS.get(rule)
    return None if operation is None else tile_instruction(machine, operation)


def _movement(sizes: Sequence[float], machine: Machine) -> float:
    """Cycles to move the bytes of a kernel's tensors: its data, its weights, its result."""
    data, *others, result = sizes if len(sizes) > 1 else (0.0, sizes[0])
    around, whole = data + result, sum(sizes)
    beyond = max(0.0, 1 - machine.l2_bytes / around) if around else 0.0
    weights_beyond = max(0.0, 1 - machine.l2_bytes / whole) if whole else 0.0
    return around * _NEAR + result * beyond * _FAR_RESULT + sum(others) * (_NEAR + weights_beyond * _FAR_WEIGHTS)
