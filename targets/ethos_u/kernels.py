"""Kernels written by a frontend: their semantics are determined by running them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm

from schedules.ir.tvm_types import Call
from targets.ethos_u.steps import Array, Unsupported
from targets.ethos_u.view import View, static_shape


class Kernel:
    """A call of a kernel whose operands are one tensor and constants; the tensor comes first."""

    def __init__(self, view: View, call: Call) -> None:
        self._function = view.mod[call.args[0]]
        operands = list(call.args[1].fields)
        constants = [view.constant(each) for each in operands[1:]]
        if len(call.args) > 2 or not operands or any(each is None for each in constants):
            raise Unsupported("it is a kernel of several tensors or of dynamic sizes")
        self.constants = [each for each in constants if each is not None]
        self.shape, self.result_shape = static_shape(operands[0]), static_shape(call)
        self._dtype = str(call.ty.dtype)
        self._built: Any = None

    def __call__(self, data: Array, constants: Sequence[Array] | None = None) -> Array:
        """The result for a tensor (float32), with constants other than the call's if given."""
        if self._built is None:
            module = tvm.IRModule({"main": self._function.with_attr("global_symbol", "main")})
            self._built = tvm.compile(module, target="llvm")
        result = tvm.runtime.empty(self.result_shape, self._dtype)
        given = self.constants if constants is None else constants
        operands = [each.copy() for each in (np.asarray(data, np.float32), *given)]
        self._built(*(tvm.runtime.tensor(each) for each in operands), result)
        return np.asarray(result.numpy())

    def is_pointwise(self) -> bool:
        """True if it maps each element independently, as far as random inputs show."""
        if self.shape != self.result_shape:
            return False
        rng = np.random.default_rng(0)
        data = rng.normal(size=self.shape).astype(np.float32) * 3
        order = rng.permutation(data.size)
        shuffled = data.ravel()[order].reshape(self.shape)
        expected = self(data).ravel()
        halved = self(np.where(np.arange(data.size).reshape(self.shape) < data.size // 2, data, 0)).ravel()
        return np.array_equal(self(shuffled).ravel(), expected[order], equal_nan=True) and np.array_equal(
            halved[: data.size // 2], expected[: data.size // 2], equal_nan=True
        )

    def values(self, inputs: Array) -> Array:
        """Results of a pointwise kernel for a row of numbers; float64."""
        size = int(np.prod(self.shape))
        padded = np.pad(inputs, (0, -len(inputs) % size)).reshape(-1, *self.shape)
        return np.concatenate([self(part).ravel() for part in padded])[: len(inputs)].astype(np.float64)

    def axis_matrices(self) -> dict[int, Array]:
        """Matrices of a kernel that maps each axis separately and linearly: (result, operand) float64, for the axes
        that it
        changes. Raises Unsupported if it is not such a kernel, as far as random inputs show."""
        if len(self.shape) != len(self.result_shape):
            raise Unsupported("it is a kernel that changes the number of axes")
        matrices = {}
        for axis, size in enumerate(self.shape):
            matrix = self._matrix(axis, size)
            if matrix.shape != (size, size) or not np.array_equal(matrix, np.eye(size)):
                matrices[axis] = matrix
        data = np.random.default_rng(0).normal(size=self.shape)
        expected = data
        for axis, matrix in matrices.items():
            expected = np.moveaxis(np.tensordot(matrix, expected, (1, axis)), 0, axis)
        if not np.allclose(self(data), expected, rtol=1e-4, atol=1e-4):
            raise Unsupported("it is a kernel that does more than map each axis separately")
        return matrices

    def _matrix(self, axis: int, size: int) -> Array:
        row = tuple(slice(None) if each == axis else 0 for each in range(len(self.shape)))
        columns = []
        for index in range(size):
            data = np.zeros(self.shape, np.float32)
            data[tuple(index if each == axis else slice(None) for each in range(len(self.shape)))] = 1
            columns.append(self(data)[row])
        return np.stack(columns, -1).astype(np.float64)
