"""Tensor expressions of block-quantized weights: matmuls, and embedding lookups.

They define the result on any target; `schedules.matmul.blocks.rule` writes the matmul loops for processors.

The layout of block-quantized weights, the same on every machine, for embeddings, single tokens and prompts.

A weight (columns, depth) is unsigned integers q of a few bits, and numbers for each group of neighbors along the depth:

    w = scale * (q - zero) + minimum

Columns are stored in panels of 32. The bits of q are split into planes of 8, 4, 2 or 1 bits. A word (int32) of a plane
holds neighbors along the depth: its byte i belongs to the positions 4 n + i; the lowest bits of all its bytes to the
first four positions of the word, the next ones to the next four. So a shift and a mask extract four neighbors as bytes,
as the byte dot product needs them. Positions past the depth and columns past the last are 0.

    plane of b bits: int32 (panels, depth / (32 / b), 32), the depth rounded up to whole steps and groups
    numbers of groups: (panels, groups, 32)

A scale is one number or, with `super_groups` groups that share a number, that number times an integer; so is a minimum.
The integers may also be codes: indices into a table, or floats of 8 bits. Weights of 16 or 32 bits are the numbers
themselves, `32 / bits` neighbors per word, and have no groups.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from schedules.annotations import KIND, SPEC
from schedules.ir.expression import index, number
from schedules.ir.numbers import WORD_BYTES
from schedules.ir.tir import Expr, IterVar, Tensor, te, tirx
from schedules.matmul.blocks.rounding import HEADER, SCALE

PANEL = 32  # columns
STEP = 32  # neighbors along the depth per step of the kernels
FLOATS = ("bfloat16", "float16", "float32")
FLOATS_OF_8_BITS = ("float8_e4m3fn", "float8_e5m2")
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class BlockFormat:
    """Storage format of a weight's elements.

    Attributes:
        bits: bits per integer, 1 to 8; 16 or 32 for unquantized numbers, whose dtype is `numbers`.
        group: number of neighbors along the depth that share a scale, a multiple of 4; 0 for unquantized numbers.
        zero: the zero point, if it is the same for all integers.
        zeros: each group has its own zero point (uint8).
        minimum: each group has a minimum that is added.
        super_groups: number of groups that share a factor of their integer scales and minimums; 0 if scales and
            minimums are floats.
        numbers: the dtype of unquantized numbers: "bfloat16", "float16", "float32"; "" for integers.
        float8: the 8-bit float dtype of the codes, one of `FLOATS_OF_8_BITS`; "" for integers.
        table: the values of the codes 0, 1, ..., 2**bits of them; empty for integers.
    """

    bits: int
    group: int = 0
    zero: int = 0
    zeros: bool = False
    minimum: bool = False
    super_groups: int = 0
    numbers: str = ""
    float8: str = ""
    table: tuple[float, ...] = ()

    def text(self) -> str:
        """The format as JSON, for annotations."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def of_text(text: str) -> BlockFormat:
        """The format that `text` describes."""
        fields = json.loads(text)
        return BlockFormat(**{**fields, "table": tuple(fields["table"])})

    @property
    def is_integer(self) -> bool:
        """True if the elements are scaled integers, which int8 dot products can multiply."""
        return not (self.numbers or self.float8 or self.table)

    @property
    def planes(self) -> tuple[int, ...]:
        """Bits of each plane, lowest first; empty for unquantized numbers."""
        return () if self.numbers else _PLANES[self.bits]

    @property
    def unit(self) -> int:
        """Number of neighbors along the depth that share a scale of the weight and of quantized data."""
        return self.group if STEP % self.group == 0 else STEP

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of a weight's arrays, in order."""
        names = ["numbers"] if self.numbers else [f"plane{at}" for at in range(len(self.planes))]
        if not self.numbers:
            names += ["scale"] + ["scale_integers"] * bool(self.super_groups)
            names += ["zeros"] * self.zeros
            names += (["minimum"] + ["minimum_integers"] * bool(self.super_groups)) * self.minimum
        return tuple(names)

    def padded_depth(self, depth: int) -> int:
        """The depth rounded up to whole steps, groups and super groups; for unquantized numbers, to whole words."""
        if self.numbers:
            return -(-depth * self.bits // 32) * 32 // self.bits
        whole = int(np.lcm(STEP, max(1, self.group) * max(1, self.super_groups)))
        return -(-depth // whole) * whole


def pack_planes(values: NDArray[np.uint8], layout: BlockFormat) -> list[NDArray[np.int32]]:
    """Bit planes of integers (columns, depth), which are below 2**bits."""
    columns, depth = values.shape
    panels, padded = -(-columns // PANEL), layout.padded_depth(depth)
    planes: list[NDArray[np.int32]] = []
    start = 0
    for bits in layout.planes:
        per_word = 8 // bits  # quads per word
        words = padded // (WORD_BYTES * per_word)
        packed = np.empty((panels, words, PANEL, WORD_BYTES), np.uint8)
        for panel in range(panels):
            rows = np.zeros((PANEL, padded), np.uint8)
            part = values[panel * PANEL : (panel + 1) * PANEL]
            rows[: len(part), :depth] = (part >> np.uint8(start)) & np.uint8(2**bits - 1)
            quads = rows.reshape(PANEL, words, per_word, WORD_BYTES)
            word = quads[:, :, 0].copy()
            for quad in range(1, per_word):
                word |= quads[:, :, quad] << np.uint8(bits * quad)
            packed[panel] = word.transpose(1, 0, 2)
        planes.append(packed.view(np.int32)[..., 0])
        start += bits
    return planes


def pack_numbers(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Pack one number per group, (columns, groups), as (panels, groups, 32)."""
    columns, groups = values.shape
    panels = -(-columns // PANEL)
    padded = np.zeros((panels * PANEL, groups), values.dtype)
    padded[:columns] = values
    return np.ascontiguousarray(padded.reshape(panels, PANEL, groups).transpose(0, 2, 1))


def pack_floats(values: NDArray[np.generic], layout: BlockFormat) -> NDArray[np.int32]:
    """Pack unquantized numbers (columns, depth), given as unsigned integers of the format's width, as words (panels,
    steps, 32)."""
    columns, depth = values.shape
    per_word = 32 // layout.bits
    panels, padded = -(-columns // PANEL), layout.padded_depth(depth)
    packed = np.empty((panels, padded // per_word, PANEL, per_word), values.dtype)
    for panel in range(panels):
        rows = np.zeros((PANEL, padded), values.dtype)
        part = values[panel * PANEL : (panel + 1) * PANEL]
        rows[: len(part), :depth] = part
        packed[panel] = rows.reshape(PANEL, padded // per_word, per_word).transpose(1, 0, 2)
    return packed.view(np.int32)[..., 0]


_int32 = partial(index, dtype="int32")

BLOCK_MATMUL = "block-matmul"
EXPERT_MATMUL = "expert-matmul"


def integer(planes: list[Tensor], layout: BlockFormat, panel: Expr, k: Expr, lane: Expr) -> Expr:
    """The unsigned integer at index k of the depth."""
    quad, byte = tirx.floordiv(k, WORD_BYTES), tirx.Cast("int32", tirx.floormod(k, WORD_BYTES))
    value, start = _int32(0), 0
    for plane, bits in zip(planes, layout.planes, strict=True):
        per_byte = 8 // bits
        shift = byte * 8 + tirx.Cast("int32", tirx.floormod(quad, per_byte)) * bits
        part = (plane(panel, tirx.floordiv(quad, per_byte), lane) >> shift) & _int32(2**bits - 1)
        value = value + (part << _int32(start))
        start += bits
    return value


def number_of(value: Expr, layout: BlockFormat) -> Expr:
    """The float32 value of an integer code, for a format with `float8` or a lookup table."""
    if layout.table:
        return _chosen(value, layout.table)
    # Exponent and fraction shifted to their position in a float32 are the number times a power of two, subnormal or
    # not.
    fraction, bias = (20, 120) if layout.float8 == "float8_e4m3fn" else (21, 112)
    bits = (value & _int32(0x7F)) << _int32(fraction) | (value & _int32(0x80)) << _int32(24)
    return tirx.reinterpret("float32", bits) * tirx.const(2.0**bias, "float32")


def _chosen(value: Expr, table: Sequence[float]) -> Expr:
    """Look up an entry of a power-of-two-sized table by selects, one bit at a time from the lowest."""
    rows = [tirx.const(each, "float32") for each in table]
    bit = 0
    while len(rows) > 1:
        is_set = tirx.NE(value & _int32(1 << bit), _int32(0))
        rows = [tirx.Select(is_set, odd, even) for even, odd in zip(rows[::2], rows[1::2], strict=True)]
        bit += 1
    return rows[0]


def plain_number(words: Tensor, layout: BlockFormat, panel: Expr, k: Expr, lane: Expr) -> Expr:
    """The float32 value of the unquantized number at index k of the depth."""
    if layout.bits == 32:
        return tirx.reinterpret("float32", words(panel, k, lane))
    half = tirx.Cast("int32", tirx.floormod(k, 2)) * 16
    word = words(panel, tirx.floordiv(k, 2), lane) >> half
    if layout.numbers == "bfloat16":
        return tirx.reinterpret("float32", word << _int32(16))
    return tirx.Cast("float32", tirx.reinterpret("float16", tirx.Cast("uint16", word)))


def element(arrays: Mapping[str, Tensor], layout: BlockFormat, k: Expr, panel: Expr, lane: Expr) -> Expr:
    """The float32 element of a weight at index k of the depth, in a column of a panel."""
    if layout.numbers:
        return plain_number(arrays["numbers"], layout, panel, k, lane)
    planes = [arrays[f"plane{at}"] for at in range(len(layout.planes))]
    value = integer(planes, layout, panel, k, lane)
    group = tirx.floordiv(k, layout.group)

    def of_group(name: str) -> Expr:
        if not layout.super_groups:
            return number(arrays[name](panel, group, lane), "float32")
        high = number(arrays[name](panel, tirx.floordiv(group, layout.super_groups), lane), "float32")
        return high * tirx.Cast("float32", arrays[f"{name}_integers"](panel, group, lane))

    if not layout.is_integer:
        return of_group("scale") * number_of(value, layout)
    value = value - _int32(layout.zero)
    if layout.zeros:
        value = value - tirx.Cast("int32", arrays["zeros"](panel, group, lane))
    result = of_group("scale") * tirx.Cast("float32", value)
    return result + of_group("minimum") if layout.minimum else result


def block_matmul(data: Tensor, *stored: Tensor, columns: int, depth: int, layout: str) -> Tensor:
    """Matmul of data (..., depth) and a weight: float32 (..., columns).

    Args:
        data: float32 (..., depth), or the output of `block_round` for it, with the format's `unit`.
        stored: the arrays of the weight, as `BlockFormat.arrays` names them.
        columns: number of columns of the weight.
        depth: depth of the weight.
        layout: the text of its `BlockFormat`.
    """
    shape = data.shape[:-2] if str(data.dtype) == "int32" else data.shape[:-1]
    return _matmul(BLOCK_MATMUL, data, [*shape, index(columns)], stored, depth, layout, lambda at, panel: panel)


def _matmul(
    kind: str,
    data: Tensor,
    shape: list[Expr],
    stored: Sequence[Tensor],
    depth: int,
    layout: str,
    panel_of: Callable[[tuple[Expr, ...], Expr], Expr],
) -> Tensor:
    """The matmul of a `shape`; `panel_of(position of a row, panel)` is the panel of the stored weight."""
    form = BlockFormat.of_text(layout)
    arrays = dict(zip(form.arrays, stored, strict=True))
    k = te.reduce_axis((index(0), index(depth)), name="k")

    def point(*at: Expr) -> Expr:
        panel, lane = _column(at[-1])
        weight = element(arrays, form, k, panel_of(at[:-1], panel), lane)
        return te.sum(_number_of(data, form, at[:-1], k) * weight, axis=k)

    return te.compute(shape, point, name="matmul", attrs={KIND: kind, SPEC: layout})


def expert_matmul(data: Tensor, experts: Tensor, *stored: Tensor, columns: int, depth: int, layout: str) -> Tensor:
    """Matmul of each row of data with the weight of its expert: float32 (rows, columns).

    Args:
        data: float32 (rows, depth), or the output of `block_round` for it, with the format's `unit`.
        experts: int64 (rows,), the expert of each row. Consecutive rows with the same expert read its weight once.
        stored: the arrays of a weight in which each expert has `columns` columns, rounded up to whole panels.
        columns: number of columns of one expert.
        depth: depth of the weight.
        layout: the text of its `BlockFormat`.
    """
    panels = -(-columns // PANEL)

    def panel_of(at: tuple[Expr, ...], panel: Expr) -> Expr:
        return experts(*at) * panels + panel

    return _matmul(EXPERT_MATMUL, data, [data.shape[0], index(columns)], stored, depth, layout, panel_of)


def _column(column: Expr) -> tuple[Expr, Expr]:
    """The panel of a column, and its lane within it."""
    return tirx.floordiv(column, PANEL), tirx.floormod(column, PANEL)


def _number_of(data: Tensor, form: BlockFormat, at: tuple[Expr, ...], k: IterVar) -> Expr:
    """The float32 value of float32 or quantized data at index k of a row."""
    if str(data.dtype) != "int32":
        return data(*at, k)
    unit, position = tirx.floordiv(k, form.unit), tirx.floormod(k, form.unit)
    word = data(*at, unit, tirx.floordiv(position, WORD_BYTES) + HEADER)
    byte = (word << (_int32(24) - tirx.Cast("int32", tirx.floormod(position, WORD_BYTES)) * 8)) >> _int32(24)
    return tirx.Cast("float32", byte) * tirx.reinterpret("float32", data(*at, unit, SCALE))


def block_take(positions: Tensor, *stored: Tensor, columns: int, depth: int, layout: str) -> Tensor:
    """Embedding lookup: columns of a weight as float32 (..., depth), for integers (...) clamped to [0, columns).

    The other arguments are those of `block_matmul`.
    """
    form = BlockFormat.of_text(layout)
    arrays = dict(zip(form.arrays, stored, strict=True))

    def point(*at: Expr) -> Expr:
        position = tirx.Cast("int64", positions(*at[:-1]))
        position = tirx.max(tirx.min(position, tirx.const(columns - 1, "int64")), tirx.const(0, "int64"))
        return element(arrays, form, at[-1], *_column(position))

    return te.compute([*positions.shape, tirx.const(depth, "int64")], point, name="take")
