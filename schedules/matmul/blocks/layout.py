"""The layout of block-quantized weights, the same on every machine, for embeddings, single tokens and prompts.

A weight (columns, depth) is unsigned integers q of a few bits, and numbers for each group of neighbours along the
depth:

    w = scale * (q - zero) + minimum

Columns lie in panels of 32. The bits of q are split into planes of 8, 4, 2 or 1 bits. A word (int32) of a plane holds
neighbours along the depth: its byte i belongs to the places 4 n + i; the lowest bits of all its bytes to the first four
places of the word, the next ones to the next four. So a shift and a mask give four neighbours as bytes, which is what
the dot product of bytes reads. Places beyond the depth and columns beyond the last are 0.

    plane of b bits: int32 (panels, depth / (32 / b), 32), the depth rounded up to whole steps and groups
    numbers of groups: (panels, groups, 32)

A scale is one number or, with `super_groups` groups to a number of their own, that number times an integer; so is a
minimum. In place of themselves, the integers may stand for numbers: those of a table, or floats of 8 bits. Weights of
16 or 32 bits are the numbers themselves, `32 / bits` neighbours a word, and have no groups.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

PANEL = 32  # columns
STEP = 32  # neighbours along the depth that a step of the kernels takes
QUAD = 4  # bytes of a word
FLOATS = ("bfloat16", "float16", "float32")
FLOATS_OF_8_BITS = ("float8_e4m3fn", "float8_e5m2")
_PLANES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


@dataclass(frozen=True)
class BlockFormat:
    """Storage format of a weight's elements.

    Attributes:
        bits: bits per integer, 1 to 8; 16 or 32 for unquantized numbers, whose dtype is `numbers`.
        group: number of neighbours along the depth that share a scale, a multiple of 4; 0 for unquantized numbers.
        zero: the zero point, if it is the same for all integers.
        zeros: each group has its own zero point (uint8).
        minimum: each group has a minimum that is added.
        super_groups: number of groups that share a factor of their integer scales and minimums; 0 if scales and
            minimums are floats.
        numbers: the dtype of unquantized numbers: "bfloat16", "float16", "float32"; "" for integers.
        float8: the 8-bit float dtype whose bits the integers are, one of `FLOATS_OF_8_BITS`; "" for integers.
        table: the numbers that the integers 0, 1, ... stand for, 2**bits of them; empty where they are integers.
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
        """Number of neighbours along the depth that share a scale of the weight and of quantized data."""
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
        places = 8 // bits  # quads per word
        words = padded // (QUAD * places)
        packed = np.empty((panels, words, PANEL, QUAD), np.uint8)
        for panel in range(panels):
            rows = np.zeros((PANEL, padded), np.uint8)
            part = values[panel * PANEL : (panel + 1) * PANEL]
            rows[: len(part), :depth] = (part >> np.uint8(start)) & np.uint8(2**bits - 1)
            quads = rows.reshape(PANEL, words, places, QUAD)
            word = quads[:, :, 0].copy()
            for place in range(1, places):
                word |= quads[:, :, place] << np.uint8(bits * place)
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
    places = 32 // layout.bits
    panels, padded = -(-columns // PANEL), layout.padded_depth(depth)
    packed = np.empty((panels, padded // places, PANEL, places), values.dtype)
    for panel in range(panels):
        rows = np.zeros((PANEL, padded), values.dtype)
        part = values[panel * PANEL : (panel + 1) * PANEL]
        rows[: len(part), :depth] = part
        packed[panel] = rows.reshape(PANEL, padded // places, places).transpose(1, 0, 2)
    return packed.view(np.int32)[..., 0]
