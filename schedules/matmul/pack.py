"""The layout of constant matmul weights: panels a few vectors wide, each stored row by row.

`packed[panel, k, lane] = weight[k, panel * width + lane]`; columns beyond the last are zero and never stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schedules.instructions.rounding import bfloat16_bits
from schedules.ir.expression import number
from schedules.ir.tir import Expr, Tensor, te, tirx

FUSABLE = 4  # relax's pattern kind "out elementwise fusable": elementwise consumers join the kernel


def pack_panels(weight: np.ndarray, width: int) -> np.ndarray:
    """A (depth, columns) weight as (panels, depth, width)."""
    depth, columns = weight.shape
    panels = -(-columns // width)
    padded = np.zeros((depth, panels * width), weight.dtype)
    padded[:, :columns] = weight
    return np.ascontiguousarray(padded.reshape(depth, panels, width).transpose(1, 0, 2))


def pack_words(weight: np.ndarray, width: int, group: int, depth_of: int = 0) -> NDArray[np.int32]:
    """A (depth, columns) weight as int32 (panels, steps, words): `group` consecutive rows side by side for each of a
    panel's `width` columns, with the depth zero-padded to a multiple of `depth_of`."""
    values = bfloat16_bits(weight) if weight.dtype == np.float32 else weight
    depth, columns = values.shape
    block = max(group, depth_of)
    panels, steps = -(-columns // width), -(-depth // block) * block // group
    padded = np.zeros((group * steps, panels * width), values.dtype)
    padded[:depth, :columns] = values
    groups = padded.reshape(steps, group, panels, width).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(groups).view(np.int32).reshape(panels, steps, -1)


def packed_matmul(data: Tensor, packed: Tensor, columns: int) -> Tensor:
    """Matmul of data (..., depth) and a packed weight as a tensor expression: (..., columns), in the dtype of the data.

    The weight may be stored narrower, as int8, float16, or bfloat16 in uint16: it is converted as it is read.
    """
    depth, width = packed.shape[1], int(packed.shape[2])
    k = te.reduce_axis((tirx.IntImm("int64", 0), depth), name="k")

    def point(*at: Expr) -> Expr:
        weight = packed(tirx.floordiv(at[-1], width), k, tirx.floormod(at[-1], width))
        return te.sum(data(*at[:-1], k) * number(weight, str(data.dtype)), axis=k)

    shape = [*data.shape[:-1], tirx.IntImm("int64", columns)]
    return te.compute(shape, point, name="matmul")


__all__ = ["FUSABLE", "pack_panels", "pack_words", "packed_matmul"]
