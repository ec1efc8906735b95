"""4-bit quantization in groups of 32 neighbors with the best of several scales per group, in compiled code.

The code targets the architecture's baseline CPU, so that a model becomes the same module wherever it is compiled.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import IRModule

from compiler.frontends.llm.weights import Array
from schedules.codegen.nest import allocate, load, parallel, repeat, sequence, store, vectorized
from schedules.instructions.llvm_options import plain_cpu
from schedules.ir.expression import expression
from schedules.ir.tir import Expr, Stmt
from schedules.ir.tvm_types import Buffer

GROUP = 32
_LANES = 16  # groups that are rounded in parallel
# The candidate scales map the largest number of a group to one of these.
_ENDS = tuple(-8 + 0.15 * (trial - 7) for trial in range(15))


def best_scales(groups: Array, importance: Array | None = None) -> Array:
    """Return the scale of each group with the smallest weighted squared error.

    Args:
        groups: float32 (rows, groups of a row, 32).
        importance: weights of the squared errors, float32 (groups of a row, 32); None: all 1.

    Returns:
        float16 (rows, groups of a row): w is about `scale * q` with q in [-8, 7]; 0 for a group of zeros.
    """
    rows, count, size = groups.shape
    assert size == GROUP
    if importance is None:
        importance = np.ones((count, GROUP), np.float32)
    tiles = -(-rows // _LANES)
    padded = np.ascontiguousarray(groups, np.float32)
    if rows % _LANES:
        padded = np.concatenate([padded, np.zeros((tiles * _LANES - rows, count, GROUP), np.float32)])
    operands = (padded.reshape(tiles, _LANES, count, GROUP), np.ascontiguousarray(importance, np.float32))
    result = tvm.runtime.empty((tiles, _LANES, count), "float16")
    _kernel()(*map(tvm.runtime.tensor, operands), result)
    scales: Array = result.numpy().reshape(-1, count)[:rows]
    return scales


@cache
def _kernel() -> Any:
    """Return the compiled function of (groups, importance, scales)."""
    tiles, count = tirx.Var("tiles", "int64"), tirx.Var("count", "int64")
    groups = tirx.decl_buffer([tiles, expression(_LANES), count, expression(GROUP)], "float32", "groups")
    importance = tirx.decl_buffer([count, expression(GROUP)], "float32", "importance")
    scales = tirx.decl_buffer([tiles, expression(_LANES), count], "float16", "scales")

    def tile(at: Expr) -> Stmt:
        return repeat("group", count, lambda g: _Groups(groups, importance, scales, at, g).code())

    function = tirx.PrimFunc([groups, importance, scales], parallel("tile", tiles, tile))
    function = function.with_attrs({"global_symbol": "main", "tirx.noalias": True, "s_tir": True})
    return tvm.compile(IRModule({"main": function}), target=tvm.target.Target(plain_cpu()))["main"]


class _Groups:
    """Emits the code for one group of as many rows as there are lanes."""

    def __init__(self, given: Buffer, importance: Buffer, scales: Buffer, tile: Expr, group: Expr) -> None:
        self.given, self.importance, self.result, self.tile, self.group = given, importance, scales, tile, group
        self.values, values_made = allocate("values", [GROUP, _LANES], "float32", "local")
        names = ("largest", "best", "least", "scale", "inverse", "error")
        pairs = {name: allocate(name, [_LANES], "float32", "local") for name in names}
        self.numbers = {name: buffer for name, (buffer, _) in pairs.items()}
        self.made = [values_made, *(made for _, made in pairs.values())]

    def code(self) -> Stmt:
        zero = tirx.const(0.0, "float32")

        def value(k: Expr, lane: Expr) -> Stmt:
            return store(self.values, load(self.given, self.tile, lane, self.group, k), k, lane)

        def larger(k: Expr, lane: Expr) -> Expr:
            x, most = load(self.values, k, lane), self._get("largest", lane)
            return tirx.Select(tirx.abs(x) > tirx.abs(most), x, most)

        return sequence(
            self.made,
            repeat("k", GROUP, lambda k: repeat("lane", _LANES, lambda lane: value(k, lane))),
            self._set("largest", lambda lane: zero),
            repeat("k", GROUP, lambda k: self._set("largest", lambda lane: larger(k, lane))),
            self._set("best", lambda lane: zero),
            self._set("least", lambda lane: tirx.max_value("float32")),
            [self._trial(end) for end in _ENDS],
            repeat(
                "lane",
                _LANES,
                lambda lane: store(
                    self.result, tirx.Cast("float16", self._get("best", lane)), self.tile, lane, self.group
                ),
            ),
        )

    def _trial(self, end: float) -> Stmt:
        """Try another scale, and keep it if its error is the smallest so far."""
        zero, one = tirx.const(0.0, "float32"), tirx.const(1.0, "float32")

        def halved(lane: Expr) -> Expr:
            half = tirx.Cast("float16", self._get("largest", lane) * tirx.const(1 / end, "float32"))
            return tirx.Cast("float32", half)

        def added(k: Expr, lane: Expr) -> Expr:
            x, half = load(self.values, k, lane), tirx.const(0.5, "float32")
            near = x * self._get("inverse", lane)
            near = tirx.max(tirx.min(near, tirx.const(7.0, "float32")), tirx.const(-8.0, "float32"))
            whole = tirx.Cast("float32", tirx.Cast("int32", near + tirx.Select(near < zero, zero - half, half)))
            off = whole * self._get("scale", lane) - x
            return self._get("error", lane) + off * off * load(self.importance, self.group, k)

        def is_best(lane: Expr) -> Expr:
            return self._get("error", lane) < self._get("least", lane)

        return sequence(
            self._set("scale", halved),
            self._set(
                "inverse",
                lambda lane: tirx.Select(
                    tirx.NE(self._get("scale", lane), zero),
                    one / tirx.Select(tirx.NE(self._get("scale", lane), zero), self._get("scale", lane), one),
                    zero,
                ),
            ),
            self._set("error", lambda lane: zero),
            repeat("k", GROUP, lambda k: self._set("error", lambda lane: added(k, lane))),
            self._set(
                "best",
                lambda lane: tirx.Select(is_best(lane), self._get("scale", lane), self._get("best", lane)),
            ),
            self._set("least", lambda lane: tirx.min(self._get("error", lane), self._get("least", lane))),
        )

    def _get(self, name: str, lane: Expr) -> Expr:
        return load(self.numbers[name], lane)

    def _set(self, name: str, value: Expr) -> Stmt:
        return vectorized("lane", _LANES, lambda lane: store(self.numbers[name], value(lane), lane))


# GPTQ: columns of a weight are rounded one after another, and the remaining ones compensate for the error in the
# results.
#
# Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), with a
# scale per group of neighbors, chosen when the group is reached.

_DAMPING = 0.01  # fraction of the diagonal's mean that is added to the diagonal
_INT4_MIN, _INT4_MAX = -8, 7


def rounded_by_gptq(values: Array, gram: Array) -> tuple[Array, Array]:
    """Round a weight to 4 bits so that its matmul results on data, not its elements, change least.

    Args:
        values: float32 (rows, depth).
        gram: the sum of x xᵀ over the data x, float32 (depth, depth).

    Returns:
        integers, int8 (rows, groups * 32), and scales, float16 (rows, groups), as in `best_scales`.
    """
    rows, depth = values.shape
    groups = -(-depth // GROUP)
    remaining = np.zeros((rows, groups * GROUP), np.float32)
    remaining[:, :depth] = values
    factors = _factors(gram, groups * GROUP)
    integers = np.empty(remaining.shape, np.int8)
    scales = np.empty((rows, groups), np.float16)
    for group in range(groups):
        first, end = group * GROUP, (group + 1) * GROUP
        group_factors = factors[first:end, first:end]
        importance = 1 / np.square(np.diagonal(group_factors))
        scale = best_scales(remaining[:, None, first:end], importance[None])[:, 0]
        errors = _round_group(remaining[:, first:end], scale.astype(np.float32), group_factors, integers[:, first:end])
        remaining[:, end:] -= errors @ factors[first:end, end:]
        scales[:, group] = scale
    return integers, scales


def _factors(gram: Array, size: int) -> Array:
    """Return the upper Cholesky factor of the inverse of the damped matrix, float32 (size, size)."""
    padded = np.zeros((size, size), np.float64)
    padded[: len(gram), : len(gram)] = gram
    mean = float(np.mean(np.diagonal(gram))) or 1.0
    padded[np.diag_indices(size)] += _DAMPING * mean
    upper: Array = np.linalg.cholesky(np.linalg.inv(padded)).T
    return np.ascontiguousarray(upper, np.float32)


def _round_group(values: Array, scale: Array, factors: Array, integers: Array) -> Array:
    """Round the columns of a group into `integers`; return their errors (rows, 32), each divided by its factor."""
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    columns = np.ascontiguousarray(values.T)
    errors = np.empty_like(columns)
    for at in range(GROUP):
        rounded = np.clip(np.rint(columns[at] * inverse), _INT4_MIN, _INT4_MAX)
        integers[:, at] = rounded
        errors[at] = (columns[at] - rounded * scale) / factors[at, at]
        if at + 1 < GROUP:
            columns[at + 1 :] -= factors[at, at + 1 :, None] * errors[at]
    return np.ascontiguousarray(errors.T)
