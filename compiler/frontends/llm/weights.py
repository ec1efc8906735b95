"""Checkpoint weights, read one tensor at a time: the reader interface, and the weights models take from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from compiler.errors import InvalidModelError, OptionError

Array = np.ndarray
FLOAT_KINDS = ("F32", "F16", "BF16")
Part = TypeVar("Part")


@dataclass(frozen=True)
class Groups:
    """Per-group numbers of a quantized weight: w = scale * (value - zero).

    Attributes:
        size: number of neighbors along the depth that share a scale; the last group may be shorter.
        scales: float (rows, groups).
        zeros: integers (rows, groups); None for 0.
        order: int64 (depth,), the input feature at each index of the depth (GPTQ's act-order); None if in order.
        table: float32 (2**bits,), the value of each integer; None if it is the integer itself.
    """

    size: int
    scales: Array
    zeros: Array | None = None
    order: Array | None = None
    table: Array | None = None

    def fits(self, other: Groups) -> bool:
        """True if rows of the two can belong to one weight."""
        return (
            self.size == other.size
            and (self.zeros is None) == (other.zeros is None)
            and _equal(self.order, other.order)
            and _equal(self.table, other.table)
        )


def _equal(one: Array | None, other: Array | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


@dataclass(frozen=True)
class Matrix:
    """The weight of a matmul or a look-up table: (rows, depth).

    Attributes:
        kind: the element type as GGUF names it: "F32", "F16", "BF16", or blocks along the depth: "Q4_0", "Q6_K", ...;
            with `groups` "INT2" to "INT8", "F8_E4M3" or "F8_E5M2".
        data: (rows, depth) of float32, float16 or ml_dtypes.bfloat16; for blocks uint8 (rows, bytes per row); with
            groups uint8 or int8 (rows, depth), one byte per element.
        depth: elements of a row.
        groups: scales of a weight that is quantized differently from GGUF's blocks.
    """

    kind: str
    data: Array
    depth: int
    groups: Groups | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.data)

    def transposed(self) -> Matrix:
        """Return the transpose, without a copy. Raises OptionError for quantized weights."""
        if self.kind not in FLOAT_KINDS:
            raise OptionError("quantized weights that are stored as (depth, rows), as GPT-2's, are not supported")
        return Matrix(self.kind, self.data.T, self.rows)

    def taken(self, rows: Array | slice) -> Matrix:
        """Select rows, in the given order."""
        return Matrix._merged([self], lambda arrays: arrays[0][rows])

    @staticmethod
    def joined(parts: Sequence[Matrix]) -> Matrix:
        """Concatenate the rows of all parts, which must stack."""
        return parts[0] if len(parts) == 1 else Matrix._merged(parts, np.concatenate)

    @staticmethod
    def _merged(parts: Sequence[Matrix], merge: Callable[[list[Array]], Array]) -> Matrix:
        """Apply the same merge of rows to all arrays."""
        first, groups = parts[0], [part.groups for part in parts if part.groups is not None]
        merged = None
        if groups:
            zeros = [each.zeros for each in groups if each.zeros is not None]
            scales = merge([each.scales for each in groups])
            merged = replace(groups[0], scales=scales, zeros=merge(zeros) if zeros else None)
        return Matrix(first.kind, merge([part.data for part in parts]), first.depth, merged)

    def stacks_on(self, other: Matrix) -> bool:
        """True if rows of the two can belong to one weight."""
        if self.groups is None or other.groups is None:
            return self.kind == other.kind and self.groups is other.groups
        return self.kind == other.kind and self.groups.fits(other.groups)


@dataclass(frozen=True)
class LowRank:
    """Changes of a matmul's outputs by one of several adapters: x -> outer[slots[i]] @ (inner[slots[i]] @ x).

    Attributes:
        inner: float32 (adapters with changes, rank, depth).
        outer: float32 (adapters with changes, rows, rank).
        slots: int64 (adapters + 1,), the index of each adapter's matrices; -1 for adapters without changes, like number
            0.
        module: name of the changed weight, "" for none.
    """

    inner: Array
    outer: Array
    slots: Array
    module: str

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return int(self.outer.shape[1])

    @staticmethod
    def none(rows: int) -> LowRank:
        """Return an empty change, for outputs next to changed ones."""
        empty = np.zeros((0, rows, 0), np.float32)
        return LowRank(empty, empty, np.zeros(0, np.int64), "")


@dataclass(frozen=True)
class Linear:
    """x -> scale * (x @ weight.T + changes(x)) + bias; `bias` and `scale` are float32 (rows,).

    `changes` cover all outputs, in order; empty if no adapter changes any.
    """

    weight: Matrix
    bias: Array | None
    scale: Array | None = None
    changes: tuple[LowRank, ...] = ()

    @staticmethod
    def of_vector(values: Array) -> Linear:
        """Return a linear layer with one output, from (depth,)."""
        return Linear(Matrix("F32", np.asarray(values, np.float32)[None], len(values)), None)

    def taken(self, rows: Array | slice) -> Linear:
        """Select outputs, in this order."""
        bias, scale = (None if each is None else each[rows] for each in (self.bias, self.scale))
        assert len(self.changes) <= 1  # parts of joined matmuls are selected before joining
        changes = tuple(replace(each, outer=each.outer[:, rows]) for each in self.changes)
        return Linear(self.weight.taken(rows), bias, scale, changes)


@dataclass(frozen=True)
class Experts:
    """The weights of one linear layer of all experts of a mixture, one matrix (rows, depth) per expert."""

    weights: tuple[Matrix, ...]
    biases: Array | None = None  # float32 (experts, rows)

    @property
    def rows(self) -> int:
        """Number of rows per expert."""
        return self.weights[0].rows

    @staticmethod
    def of_stack(stack: Matrix, count: int) -> Experts:
        """Split a tensor with all experts concatenated."""
        rows = stack.rows // count
        return Experts(tuple(stack.taken(slice(at * rows, (at + 1) * rows)) for at in range(count)))

    def part(self, rows: slice) -> Experts:
        """Slice the rows of each expert."""
        biases = None if self.biases is None else self.biases[:, rows]
        return Experts(tuple(each.taken(rows) for each in self.weights), biases)


def stacked_experts(parts: Sequence[Experts]) -> list[list[Experts]]:
    """Group parts into runs that can be one matmul."""

    def fits(part: Experts, last: Experts) -> bool:
        alike = (part.biases is None) == (last.biases is None)
        return alike and all(each.stacks_on(before) for each, before in zip(part.weights, last.weights, strict=True))

    return _runs(parts, fits)


def _runs(parts: Sequence[Part], fits: Callable[[Part, Part], bool]) -> list[list[Part]]:
    """Group parts into runs, each element of which fits the previous one."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and fits(part, runs[-1][-1]):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


class Reader(Protocol):
    """A checkpoint's tensors, by name."""

    @property
    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape, slowest axis first."""
        ...

    def matrix(self, name: str) -> Matrix:
        """Return a 2-D tensor; more axes are flattened to rows. Raises InvalidModelError if it is damaged."""
        ...

    def vector(self, name: str) -> Array:
        """Return any tensor as float32."""
        ...


@dataclass(frozen=True)
class _Renamed:
    """A reader with renamed tensors; `stored` maps new names to original ones."""

    reader: Reader
    stored: Mapping[str, str]

    @property
    def names(self) -> frozenset[str]:
        """See `Reader`."""
        return frozenset(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """See `Reader`."""
        return self.reader.shape(self.stored[name])

    def matrix(self, name: str) -> Matrix:
        """See `Reader`."""
        return self.reader.matrix(self.stored[name])

    def vector(self, name: str) -> Array:
        """See `Reader`."""
        return self.reader.vector(self.stored[name])


def renamed(reader: Reader, renames: Mapping[str, str]) -> Reader:
    """Return a reader with texts in its names replaced."""
    return _Renamed(reader, {new_name(name, renames): name for name in reader.names}) if renames else reader


def new_name(name: str, renames: Mapping[str, str]) -> str:
    """Return a name with texts replaced."""
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


class Checkpoint:
    """A reader that tracks the tensors taken: any left over belong to a part missing in the imported model."""

    def __init__(self, reader: Reader, origin: str) -> None:
        self._reader, self.origin = reader, origin
        self._left = set(reader.names)

    def has(self, name: str) -> bool:
        """True if there is such a tensor."""
        return name in self._reader.names

    def shape_is(self, name: str, shape: tuple[int, ...]) -> bool:
        """True if there is such a tensor with this shape."""
        return self.has(name) and self._reader.shape(name) == shape

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises InvalidModelError if it is missing."""
        if not self.has(name):
            raise InvalidModelError(f"{self.origin} lacks the tensor {name!r}", "the checkpoint is not complete")
        return self._reader.shape(name)

    def vector(self, name: str, size: int) -> Array:
        """Return a 1-D tensor as float32. Raises InvalidModelError if it is missing or has another size."""
        return self.array(name, (size,))

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return a tensor of any rank as float32. Raises InvalidModelError if it is missing or has another shape."""
        self._check(name, shape)
        return self._reader.vector(name)

    def matrix(self, name: str, rows: int, depth: int) -> Matrix:
        """Return a 2-D tensor. Raises InvalidModelError if it is missing or has another shape."""
        self._check(name, (rows, depth))
        return self._reader.matrix(name)

    def stack(self, name: str, count: int, rows: int, depth: int) -> Matrix:
        """Return a 3-D tensor as (count * rows, depth). Raises InvalidModelError like `matrix`."""
        self._check(name, (count, rows, depth))
        return self._reader.matrix(name)

    def ignore(self, names: Sequence[str]) -> None:
        """Mark tensors as not needed by the model, if they are present."""
        self._left.difference_update(names)

    def ignore_suffixes(self, suffixes: tuple[str, ...]) -> None:
        """Like `ignore`, for all tensors whose names have these suffixes."""
        self._left = {name for name in self._left if not name.endswith(suffixes)}

    def ignore_layers(self, layer: str, first: int) -> None:
        """Like `ignore`, for all tensors of layers from `first` on; their names begin with `layer`, with "{index}"."""
        start, end = layer.split("{index}")

        def number(name: str) -> int:
            digits = name.removeprefix(start).partition(end)[0] if name.startswith(start) else ""
            return int(digits) if digits.isdecimal() else -1

        self._left = {name for name in self._left if number(name) < first}

    def check_complete(self) -> None:
        """Raise InvalidModelError if any tensor was not taken: the model has a part that would be left out."""
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
    """Group parts into runs that can be one matmul: their weights stack, and all or none have a bias or a scale."""

    def fits(part: Linear, last: Linear) -> bool:
        alike = (part.bias is None, part.scale is None) == (last.bias is None, last.scale is None)
        return alike and part.weight.stacks_on(last.weight)

    return _runs(parts, fits)


def joined(run: Sequence[Linear]) -> Linear:
    """Concatenate weights into a matmul whose outputs are those of the parts, in order."""
    if len(run) == 1:
        return run[0]
    biases = [part.bias for part in run if part.bias is not None]
    scales = [part.scale for part in run if part.scale is not None]
    changed = any(part.changes for part in run)
    return Linear(
        Matrix.joined([part.weight for part in run]),
        np.concatenate(biases) if biases else None,
        np.concatenate(scales) if scales else None,
        tuple(each for part in run for each in part.changes or (LowRank.none(part.weight.rows),)) if changed else (),
    )
