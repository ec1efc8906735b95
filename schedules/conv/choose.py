"""Decides which algorithm a convolution uses, by estimated cycles or by measurements.

The workload returned is that of the rule which serves the kernel; its class identifies the rule. The caller packs the
weights for it and makes the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from schedules.conv.direct import ConvDirect
from schedules.conv.dot import CONV_DOT
from schedules.conv.folded import FoldedWorkload, folded_workload, tile_cycles
from schedules.conv.sparse import conv_pays
from schedules.conv.tiles import tiles_workload
from schedules.conv.winograd import Winograd, integer_winograd_pays, winograd_workload
from schedules.conv.winograd_tiling import relative_cycles, winograd_form, winograd_forms
from schedules.conv.workload import ConvWorkload, DotWorkload, QuadsWorkload, TilesWorkload, WinogradWorkload
from schedules.instructions.dot_products.operation import DOT_U8S8, OF_STORED, Operation
from schedules.instructions.dot_products.table import matrix_instruction, tile_instruction, vector_instructions
from schedules.ir.numbers import WORD_BYTES
from schedules.machine import Machine
from schedules.selection.alternatives import Alternative, Choice

WINOGRAD_ERROR_BOUND = 1e-6  # relative root mean square error; see `winograd_transforms.ERROR_BOUND`
_FOLDED_GAIN = 0.85  # folding is chosen below this fraction of any other algorithm's cycles


@dataclass(frozen=True)
class FloatConvolution:
    """The inputs of the choice for a floating-point convolution.

    Attributes:
        work: the direct convolution in float32.
        narrow: the same with 16-bit operands, if the model is to be computed in those.
        images: likely image sizes, if sizes are symbolic.
        out_order: the logical axis of each axis of the output: batch, channels, spatial dimensions.
        kept: returns the fraction of weight blocks that are not zero; a function, since counting takes time.
    """

    work: ConvWorkload
    narrow: DotWorkload | None
    images: Sequence[tuple[int, ...]]
    out_order: Sequence[int]
    kept: Callable[[], float]


@dataclass(frozen=True)
class SparseChoice:
    """A convolution that skips zero weight blocks; its workload is known once the weights are packed."""

    work: ConvWorkload


FloatChoice = FoldedWorkload | SparseChoice | WinogradWorkload | DotWorkload | ConvWorkload


def choose_float(case: FloatConvolution, machine: Machine, measured: Choice | None = None) -> FloatChoice:
    """Choose the algorithm of a floating-point convolution; `measured` selects among those that were timed."""
    work, narrow = case.work, case.narrow
    if isinstance(narrow, TilesWorkload):
        return narrow
    folded = _folded(case, machine)
    if folded is not None:
        return folded
    winograd = _winograd(case, machine, measured)
    dense = narrow is None and work.groups == 1 and work.in_block > 1
    if dense and conv_pays(case.kept(), work, winograd, machine):
        return SparseChoice(work)
    return winograd or narrow or work


def _folded(case: FloatConvolution, machine: Machine) -> FoldedWorkload | None:
    """The convolution with neighboring outputs folded into filters, if that is much cheaper."""
    work, narrow = case.work, case.narrow
    folded = folded_workload(work, machine, case.out_order, case.images)
    if folded is None:
        return None
    winograd = winograd_form(work, machine, WINOGRAD_ERROR_BOUND, narrow, case.images)
    share = 1 / (narrow.group if narrow is not None and winograd is None else 1)

    def rival(size: tuple[int, ...]) -> float:
        direct = replace(work, spatial=size)
        faster = share if winograd is None else relative_cycles(replace(winograd, spatial=size), direct, machine)
        return tile_cycles(direct, machine) * faster

    sizes = case.images or [work.spatial]
    cycles = sum(tile_cycles(replace(folded, spatial=size), machine) for size in sizes)
    return folded if cycles < _FOLDED_GAIN * sum(map(rival, sizes)) else None


def _winograd(case: FloatConvolution, machine: Machine, measured: Choice | None) -> WinogradWorkload | None:
    """The form of Winograd's method, estimated or measured; None for the direct convolution."""
    work, narrow = case.work, case.narrow
    best = winograd_form(work, machine, WINOGRAD_ERROR_BOUND, narrow, case.images)
    known = winograd_forms(work, machine, WINOGRAD_ERROR_BOUND)
    if measured is None or work.is_open or not known:
        return best
    forms = [best, *(each for each in (None, *known) if each != best)]
    return forms[measured([_alternative(each or narrow or work) for each in forms])]


def _alternative(choice: ConvWorkload) -> Alternative:
    if isinstance(choice, WinogradWorkload):
        return Alternative(Winograd.name, choice)
    return Alternative(CONV_DOT if isinstance(choice, DotWorkload) else ConvDirect.name, choice)


def choose_integer(
    plain: ConvWorkload, operand: str, fill: int, weights: NDArray[np.int8], machine: Machine
) -> DotWorkload:
    """Choose the algorithm of an 8-bit integer convolution, padded with `fill`; an `IntegerWinogradWorkload` selects
    Winograd.

    Args:
        plain: the convolution, in blocks of the machine's lanes or of four channels.
        weights: (filters, channels of a group, *kernel).
    """
    work = integer_workload(plain, operand, fill, machine)
    if isinstance(work, TilesWorkload):
        return work
    return winograd_workload(work) if integer_winograd_pays(work, weights, machine) else work


def integer_workload(plain: ConvWorkload, operand: str, fill: int, machine: Machine) -> DotWorkload:
    """Workload of an 8-bit integer convolution. Blocks of four channels are read as words in place; matrix instructions
    need two pixels."""
    tiles = tiles_workload(plain, operand, machine, fill)
    if tiles is not None:
        return tiles
    if plain.in_block != WORD_BYTES:
        return dot_workload(plain, operand, plain.block, fill)
    matrix = matrix_instruction(machine, operand, "int8")
    if matrix is not None:
        whole = plain.groups == 1 or plain.group_channels % matrix.group == 0
        if not whole or plain.group_channels <= WORD_BYTES or plain.out_spatial[-1] == 1:
            matrix = None
    instruction = matrix or next(iter(vector_instructions(machine, operand, "int8")), None)
    fields = {**vars(plain), "dtype": "int32", "in_block": WORD_BYTES if matrix is None else matrix.group}
    signed = instruction is not None and instruction.operation.a == "int8"
    return QuadsWorkload(**fields, operand=operand, fill=fill, signed=signed, matrix=matrix is not None)


def narrow_workload(work: ConvWorkload, halves: Operation, machine: Machine) -> DotWorkload | None:
    """The convolution with operands rounded to 16 bits; None if float32 is as fast on the machine, or if vectors would
    accumulate in 16 bits where tiles elsewhere in the model accumulate in float32."""
    tiles = tiles_workload(work, halves.stored, machine)
    instructions = vector_instructions(machine, halves.a, halves.b)
    if tiles is not None:
        return tiles
    if not instructions or instructions[0].rate_on(machine) <= 1:
        return None
    less_exact = instructions[0].operation is halves.partial and tile_instruction(machine, halves) is not None
    return None if less_exact else dot_workload(work, halves.stored, work.block)


def dot_workload(work: ConvWorkload, operand: str, lanes: int, fill: int = 0) -> DotWorkload:
    """The same convolution with narrow operands; the input is packed into words if it has the plain layout."""
    operation = OF_STORED.get(operand, DOT_U8S8)
    fields = {**vars(work), "in_block": operation.group if work.in_block == 1 else lanes, "dtype": operation.total}
    return DotWorkload(**fields, operand=operand, fill=fill)
