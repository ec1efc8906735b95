"""com.microsoft: heads, masks and scores that the fused attention operators share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from compiler.frontends.onnx.bounds import require
from compiler.frontends.onnx.context import NodeContext
from compiler.frontends.onnx.operators.composition import Composer, int64s
from compiler.frontends.onnx.values import TensorValue, Value

_MASKED = -10000.0


class Heads:
    """Attention on (batch, heads, length, size) tensors, and the masks of the fused operators."""

    def __init__(self, context: NodeContext) -> None:
        self.context, self.op = context, Composer(context)
        self.count = int(context.required_attribute("num_heads"))
        self.filter = float(context.attribute("mask_filter_value", _MASKED))

    def split(self, value: TensorValue, count: int | None = None) -> TensorValue:
        """(batch, length, heads * size) -> (batch, heads, length, size)."""
        shaped = self.op("Reshape", value, int64s(0, 0, count or self.count, -1))
        return self.op("Transpose", shaped, perm=[0, 2, 1, 3])

    def merge(self, value: TensorValue) -> TensorValue:
        """Inverse of `split`."""
        return self.op("Reshape", self.op("Transpose", value, perm=[0, 2, 1, 3]), int64s(0, 0, -1))

    def size(self, value: TensorValue, axis: int) -> TensorValue:
        """Return a size as an int64 tensor (1,)."""
        return self.op("Slice", self.op("Shape", value), int64s(axis), int64s(axis + 1))

    def positions(self, count: TensorValue) -> TensorValue:
        """Return 0, 1, ... up to a size given as (1,)."""
        return self.op("Range", np.int64(0), self.op("Squeeze", count), np.int64(1))

    def attend(
        self, query: TensorValue, key: TensorValue, value: TensorValue, added: Sequence[TensorValue]
    ) -> tuple[TensorValue, TensorValue]:
        """Return softmax(scores) @ value, merged, and the scores: query * scale @ key' + added..."""
        op, transposed = self.op, self.op("Transpose", key, perm=[0, 1, 3, 2])
        scores = op("Mul", op("MatMul", query, transposed), self.scale(query))
        for term in added:
            scores = op("Add", scores, term)
        return self.merge(op("MatMul", op("Softmax", scores, axis=-1), value)), scores

    def scale(self, query: TensorValue) -> float:
        """Return the factor of the scores: the node's, or 1 / sqrt(size of a head)."""
        scale, size = float(self.context.attribute("scale", 0.0)), query.shape[-1]
        if scale != 0.0:
            return scale
        if not isinstance(size, int):
            self.context.refuse("the size of a head is not known when compiling")
        return 1 / math.sqrt(size)

    def penalty(self, allowed: TensorValue, dtype: str, value: float) -> TensorValue:
        """Return 0 if allowed, otherwise `value`."""
        wide = self.op("Where", allowed, np.float32(0), np.float32(value))
        return wide if dtype == "float32" else self.op("Cast", wide, to=self.op.number(dtype))

    def padding(self, index: int, query: TensorValue, key: TensorValue) -> list[TensorValue]:
        """Return the terms that the mask in input `index` adds to the scores: raw (batch, total) or (batch, length,
        total), or ends."""
        if not self.context.has_input(index):
            return []
        op, mask, rank = self.op, self.context.value(index), self.context.rank(index)
        if rank in (2, 3):
            allowed = op("Greater", op("Cast", mask, to=6), np.int32(0))
            allowed = op("Unsqueeze", allowed, int64s(1, 2) if rank == 2 else int64s(1))
            return [self.penalty(allowed, query.dtype, self.filter)]
        if rank != 1:
            self.context.refuse(f"a mask of rank {rank} is not supported")
        batch, entries = query.shape[0], self.context.shape(index)[0]
        arithmetic = self.context.arithmetic
        ends, starts = mask, None
        if arithmetic.equal_is_proved(entries, arithmetic.multiply(batch, 2)) and entries != batch:
            ends, starts = op.outputs(2, "Split", mask, axis=0, num_outputs=2)
        elif isinstance(entries, int) and isinstance(batch, int) and entries != batch:
            self.context.refuse(f"a mask of {entries} entries for a batch of {batch} is not supported")
        else:
            require(self.context, entries, "equal", batch)
        positions = op("Cast", self.positions(self.size(key, 2)), to=6)
        allowed = op("Less", positions, op("Unsqueeze", op("Cast", ends, to=6), int64s(1)))
        if starts is not None:
            begun = op("GreaterOrEqual", positions, op("Unsqueeze", op("Cast", starts, to=6), int64s(1)))
            allowed = op("And", allowed, begun)
        return [self.penalty(op("Unsqueeze", allowed, int64s(1, 2)), query.dtype, self.filter)]

    def causal(self, query: TensorValue, key: TensorValue, before: TensorValue | None) -> list[TensorValue]:
        """Mask keys after each query's own position; the first query follows those of the cache `before` it.

        As in ONNX Runtime, the last query sees all keys, also those of cross attention after its own position.
        """
        if not self.context.attribute("unidirectional", 0):
            return []
        op, arithmetic = self.op, self.context.arithmetic
        length, positions = self.size(query, 2), self.positions(self.size(query, 2))
        rows, end = positions, query.shape[2]
        if before is not None:
            rows, end = op("Add", rows, self.size(before, 2)), arithmetic.add(end, before.shape[2])
        allowed = op("LessOrEqual", self.positions(self.size(key, 2)), op("Unsqueeze", rows, int64s(1)))
        if not arithmetic.equal_is_proved(key.shape[2], end):
            last = op("Equal", positions, op("Sub", length, np.int64(1)))
            allowed = op("Or", allowed, op("Unsqueeze", last, int64s(1)))
        # Not the filter's value: a later key stays hidden even if padding hides all others.
        lowest = np.finfo(np.float16 if query.dtype == "float16" else np.float32).min
        return [self.penalty(allowed, query.dtype, float(lowest))]

    def with_bias(self, parts: Sequence[TensorValue], bias: Value | None) -> list[TensorValue]:
        """Return query, key and value as (batch, heads, length, size), with the parts of a bias added.

        Key and value of cross attention, already split into heads, have it.
        """
        biases: Sequence[TensorValue | None] = [None] * 3
        if bias is not None:
            sizes = [self._width(part) for part in parts]
            biases = self.op.outputs(3, "Split", bias, int64s(*sizes), axis=0)
        return [
            part if len(part.shape) == 4 else self.split(part if each is None else self.op("Add", part, each))
            for part, each in zip(parts, biases, strict=True)
        ]

    def _width(self, part: TensorValue) -> int:
        """Return the number of features of all heads."""
        width = part.shape[-1] if len(part.shape) == 3 else part.shape[-1] * self.count
        if not isinstance(width, int):
            self.context.refuse("the size of the heads is not known when compiling")
        return width
