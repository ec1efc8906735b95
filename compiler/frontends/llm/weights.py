"""Weights of a checkpoint, read a tensor at a time: what a reader offers, and what a model takes from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from compiler.errors import InvalidModelError

Array = np.ndarray
FLOAT_KINDS = ("F32", "F16", "BF16")
_PANEL = 32  # rows that kernels read together


@dataclass(frozen=True)
class Matrix:
    """The weight of a product or a look-up table: (rows, depth).

    Attributes:
        kind: the element type as GGUF names it: "F32", "F16", "BF16", or blocks along the depth: "Q4_0", "Q6_K", ...
        data: (rows, depth) of float32, float16 or ml_dtypes.bfloat16; of blocks uint8 (rows, bytes of a row).
        depth: elements of a row.
    """

    kind: str
    data: Array
    depth: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.data)

    def transposed(self) -> Matrix:
        """Transposed; of weights that are not in blocks."""
        assert self.kind in FLOAT_KINDS
        return Matrix(self.kind, np.ascontiguousarray(self.data.T), self.rows)

    def taken(self, rows: Array | slice) -> Matrix:
        """These rows, in this order."""
        return Matrix(self.kind, self.data[rows], self.depth)


@dataclass(frozen=True)
class Linear:
    """x -> scale * (x @ weight.T) + bias; `bias` and `scale` are float32 (rows,)."""

    weight: Matrix
    bias: Array | None
    scale: Array | None = None

    @staticmethod
    def of_vector(values: Array) -> Linear:
        """A product with one output: (depth,)."""
        return Linear(Matrix("F32", np.asarray(values, np.float32)[None], len(values)), None)

    def taken(self, rows: Array | slice) -> Linear:
        """Only these outputs, in this order."""
        bias, scale = (None if each is None else each[rows] for each in (self.bias, self.scale))
        return Linear(self.weight.taken(rows), bias, scale)


@dataclass(frozen=True)
class Experts:
    """The weights of one product of all experts of a mixture: `count` times `rows` rows, one expert after another."""

    weight: Matrix
    count: int

    @property
    def rows(self) -> int:
        """How many rows one expert has."""
        return self.weight.rows // self.count

    @staticmethod
    def of(parts: Sequence[Matrix]) -> Experts:
        """The weights of each expert, all of one kind and shape."""
        first = parts[0]
        return Experts(Matrix(first.kind, np.concatenate([part.data for part in parts]), first.depth), len(parts))

    def part(self, start: int, end: int) -> Experts:
        """These rows of each expert."""
        each = self._each()[:, start:end]
        return Experts(Matrix(self.weight.kind, each.reshape(-1, each.shape[-1]), self.weight.depth), self.count)

    def padded(self) -> Matrix:
        """With rows of zeros, so that each expert has whole panels of 32 rows."""
        missing = -self.rows % _PANEL
        if not missing:
            return self.weight
        zeros = np.zeros((self.count, missing, self.weight.data.shape[1]), self.weight.data.dtype)
        data = np.concatenate([self._each(), zeros], axis=1).reshape(-1, zeros.shape[-1])
        return Matrix(self.weight.kind, data, self.weight.depth)

    def _each(self) -> Array:
        return self.weight.data.reshape(self.count, self.rows, -1)


def stacked_experts(parts: Sequence[Experts]) -> list[list[Experts]]:
    """Parts in runs that can be one product."""
    runs: list[list[Experts]] = []
    for part in parts:
        if runs and runs[-1][-1].weight.kind == part.weight.kind:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def joined_experts(run: Sequence[Experts]) -> Experts:
    """One product whose outputs are those of the parts, one after another, in each expert."""
    first = run[0]
    if len(run) == 1:
        return first
    data = np.concatenate([part._each() for part in run], axis=1)
    return Experts(Matrix(first.weight.kind, data.reshape(-1, data.shape[-1]), first.weight.depth), first.count)


class Reader(Protocol):
    """A checkpoint's tensors by name."""

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, slowest axis first."""
        ...

    def matrix(self, name: str) -> Matrix:
        """A tensor of two axes, or of more, whose rows are those of all leading axes. Raises InvalidModelError where it
        is damaged."""
        ...

    def vector(self, name: str) -> Array:
        """Any tensor as float32."""
        ...


class Checkpoint:
    """A reader that knows which tensors were taken: what is left over is a part that the model would lack."""

    def __init__(self, reader: Reader, origin: str) -> None:
        self._reader, self.origin = reader, origin
        self._left = set(reader.names)

    def has(self, name: str) -> bool:
        """True if there is such a tensor."""
        return name in self._reader.names

    def shape_is(self, name: str, shape: tuple[int, ...]) -> bool:
        """True if there is such a tensor of this shape."""
        return self.has(name) and self._reader.shape(name) == shape

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InvalidModelError where it is missing."""
        if not self.has(name):
            raise InvalidModelError(f"{self.origin} lacks the tensor {name!r}", "the checkpoint is not complete")
        return self._reader.shape(name)

    def vector(self, name: str, size: int) -> Array:
        """A tensor of one axis as float32. Raises InvalidModelError where it is missing or has another size."""
        return self.array(name, (size,))

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """A tensor of any axes as float32. Raises InvalidModelError where it is missing or has another shape."""
        self._check(name, shape)
        return self._reader.vector(name)

    def matrix(self, name: str, rows: int, depth: int) -> Matrix:
        """A tensor of two axes. Raises InvalidModelError where it is missing or has another shape."""
        self._check(name, (rows, depth))
        return self._reader.matrix(name)

    def stack(self, name: str, count: int, rows: int, depth: int) -> Matrix:
        """A tensor of three axes as (count * rows, depth). Raises InvalidModelError as `matrix`."""
        self._check(name, (count, rows, depth))
        return self._reader.matrix(name)

    def ignore(self, names: Sequence[str]) -> None:
        """These tensors, where they are there, hold nothing that a model needs."""
        self._left.difference_update(names)

    def ignore_suffixes(self, suffixes: tuple[str, ...]) -> None:
        """Like `ignore`, of all tensors whose names end so."""
        self._left = {name for name in self._left if not name.endswith(suffixes)}

    def check_complete(self) -> None:
        """Raise InvalidModelError where a tensor was not taken: the model has a part that would be left out."""
        if self._left:
            some = ", ".join(sorted(self._left)[:4]) + (", ..." if len(self._left) > 4 else "")
            raise InvalidModelError(
                f"{self.origin} holds tensors that its architecture does not have ({len(self._left)}): {some}",
                "its config and its weights do not belong together, or it is a variant that is not supported",
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.shape(name)
        if found != shape:
            raise InvalidModelError(f"{self.origin}: tensor {name!r} has shape {found}, expected {shape}")
        self._left.discard(name)


def stacked(parts: Sequence[Linear]) -> list[list[Linear]]:
    """Parts in runs that can be one product: their weights have one kind, and all or none have a bias or a scale."""

    def form(part: Linear) -> tuple[str, bool, bool]:
        return part.weight.kind, part.bias is None, part.scale is None

    runs: list[list[Linear]] = []
    for part in parts:
        if runs and form(runs[-1][-1]) == form(part):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def joined(run: Sequence[Linear]) -> Linear:
    """One product whose outputs are those of the parts, one after another."""
    if len(run) == 1:
        return run[0]
    first = run[0].weight
    weight = Matrix(first.kind, np.concatenate([part.weight.data for part in run]), first.depth)
    biases = [part.bias for part in run if part.bias is not None]
    scales = [part.scale for part in run if part.scale is not None]
    return Linear(weight, np.concatenate(biases) if biases else None, np.concatenate(scales) if scales else None)
