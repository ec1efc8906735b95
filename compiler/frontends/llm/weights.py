"""Weights of a checkpoint, read a tensor at a time: what a reader offers, and what a model takes from it."""

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
    """Numbers of the groups of a quantized weight: w = scale * (value - zero).

    Attributes:
        size: neighbours along the depth that share a scale; the last group may be shorter.
        scales: float (rows, groups).
        zeros: integers (rows, groups); None for 0.
        order: int64 (depth,), the feature of the input that each index of the depth belongs to (GPTQ's act-order); None
            where they are in order.
        table: float32 (2**bits,), the values that integers stand for; None where they stand for themselves.
    """

    size: int
    scales: Array
    zeros: Array | None = None
    order: Array | None = None
    table: Array | None = None

    def fits(self, other: Groups) -> bool:
        """True if rows of the two can be those of one weight."""
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
    """The weight of a product or a look-up table: (rows, depth).

    Attributes:
        kind: the element type as GGUF names it: "F32", "F16", "BF16", or blocks along the depth: "Q4_0", "Q6_K", ...;
            with `groups` "INT2" to "INT8", "F8_E4M3" or "F8_E5M2".
        data: (rows, depth) of float32, float16 or ml_dtypes.bfloat16; of blocks uint8 (rows, bytes of a row); with
            groups uint8 or int8 (rows, depth), a byte an element.
        depth: elements of a row.
        groups: scales of a weight that is quantized otherwise than GGUF's blocks.
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
        """Transposed, without a copy. Raises OptionError for quantized weights."""
        if self.kind not in FLOAT_KINDS:
            raise OptionError("quantized weights that are stored as (depth, rows), as GPT-2's, are not supported")
        return Matrix(self.kind, self.data.T, self.rows)

    def taken(self, rows: Array | slice) -> Matrix:
        """Select rows, in the given order."""
        return Matrix._merged([self], lambda arrays: arrays[0][rows])

    @staticmethod
    def joined(parts: Sequence[Matrix]) -> Matrix:
        """The rows of all parts, one after another; each stacks on the others."""
        return parts[0] if len(parts) == 1 else Matrix._merged(parts, np.concatenate)

    @staticmethod
    def _merged(parts: Sequence[Matrix], merge: Callable[[list[Array]], Array]) -> Matrix:
        """The same change of the rows of all arrays."""
        first, groups = parts[0], [part.groups for part in parts if part.groups is not None]
        merged = None
        if groups:
            zeros = [each.zeros for each in groups if each.zeros is not None]
            scales = merge([each.scales for each in groups])
            merged = replace(groups[0], scales=scales, zeros=merge(zeros) if zeros else None)
        return Matrix(first.kind, merge([part.data for part in parts]), first.depth, merged)

    def stacks_on(self, other: Matrix) -> bool:
        """True if rows of the two can be those of one weight."""
        if self.groups is None or other.groups is None:
            return self.kind == other.kind and self.groups is other.groups
        return self.kind == other.kind and self.groups.fits(other.groups)


@dataclass(frozen=True)
class LowRank:
    """Changes of outputs of a product by one of several adapters: x -> outer[slots[i]] @ (inner[slots[i]] @ x).

    Attributes:
        inner: float32 (adapters that change them, rank, depth).
        outer: float32 (adapters that change them, rows, rank).
        slots: int64 (adapters + 1,), where the matrices of each adapter are; -1 where it changes nothing, as 0 does.
        module: name of the weight that is changed, "" for none.
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
        """No change of outputs that stand beside changed ones."""
        empty = np.zeros((0, rows, 0), np.float32)
        return LowRank(empty, empty, np.zeros(0, np.int64), "")


@dataclass(frozen=True)
class Linear:
    """x -> scale * (x @ weight.T + changes(x)) + bias; `bias` and `scale` are float32 (rows,).

    `changes` are of all outputs, one after another; none where no adapter changes any.
    """

    weight: Matrix
    bias: Array | None
    scale: Array | None = None
    changes: tuple[LowRank, ...] = ()

    @staticmethod
    def of_vector(values: Array) -> Linear:
        """A product with one output: (depth,)."""
        return Linear(Matrix("F32", np.asarray(values, np.float32)[None], len(values)), None)

    def taken(self, rows: Array | slice) -> Linear:
        """Only these outputs, in this order."""
        bias, scale = (None if each is None else each[rows] for each in (self.bias, self.scale))
        assert len(self.changes) <= 1  # parts of joined products are taken before they are joined
        changes = tuple(replace(each, outer=each.outer[:, rows]) for each in self.changes)
        return Linear(self.weight.taken(rows), bias, scale, changes)


@dataclass(frozen=True)
class Experts:
    """The weights of one product of all experts of a mixture, those of each expert apart: (rows, depth)."""

    weights: tuple[Matrix, ...]
    biases: Array | None = None  # float32 (experts, rows)

    @property
    def rows(self) -> int:
        """Number of rows of one expert."""
        return self.weights[0].rows

    @staticmethod
    def of_stack(stack: Matrix, count: int) -> Experts:
        """The weights of a tensor that holds one expert after another."""
        rows = stack.rows // count
        return Experts(tuple(stack.taken(slice(at * rows, (at + 1) * rows)) for at in range(count)))

    def part(self, rows: slice) -> Experts:
        """Slice the rows of each expert."""
        biases = None if self.biases is None else self.biases[:, rows]
        return Experts(tuple(each.taken(rows) for each in self.weights), biases)


def stacked_experts(parts: Sequence[Experts]) -> list[list[Experts]]:
    """Parts in runs that can be one product."""

    def fits(part: Experts, last: Experts) -> bool:
        alike = (part.biases is None) == (last.biases is None)
        return alike and all(each.stacks_on(before) for each, before in zip(part.weights, last.weights, strict=True))

    return _runs(parts, fits)


def _runs(parts: Sequence[Part], fits: Callable[[Part, Part], bool]) -> list[list[Part]]:
    """Parts in runs, each of which fits the one before it."""
    runs: list[list[Part]] = []
    for part in parts:
        if runs and fits(part, runs[-1][-1]):
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


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


@dataclass(frozen=True)
class _Renamed:
    """A reader whose tensors have other names: those of `stored` by the new ones."""

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
    """A reader in whose names each text is replaced by another one."""
    return _Renamed(reader, {new_name(name, renames): name for name in reader.names}) if renames else reader


def new_name(name: str, renames: Mapping[str, str]) -> str:
    """A name in which each text is replaced by another one."""
    for old, new in renames.items():
        name = name.replace(old, new)
    return name


class Checkpoint:
    """A reader that tracks which tensors were taken: the others belong to a part that the imported model would lack."""

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
        """Mark tensors as not needed by the model, if they are present."""
        self._left.difference_update(names)

    def ignore_suffixes(self, suffixes: tuple[str, ...]) -> None:
        """Like `ignore`, of all tensors whose names end so."""
        self._left = {name for name in self._left if not name.endswith(suffixes)}

    def ignore_layers(self, layer: str, first: int) -> None:
        """Like `ignore`, of all tensors of layers from `first` on; their names begin with `layer`, with "{index}"."""
        start, end = layer.split("{index}")

        def number(name: str) -> int:
            digits = name.removeprefix(start).partition(end)[0] if name.startswith(start) else ""
            return int(digits) if digits.isdecimal() else -1

        self._left = {name for name in self._left if number(name) < first}

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
    """Parts in runs that can be one product: their weights stack, and all or none have a bias or a scale."""

    def fits(part: Linear, last: Linear) -> bool:
        alike = (part.bias is None, part.scale is None) == (last.bias is None, last.scale is None)
        return alike and part.weight.stacks_on(last.weight)

    return _runs(parts, fits)


def joined(run: Sequence[Linear]) -> Linear:
    """Concatenate weights: a matmul whose outputs are those of the parts, in order."""
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
