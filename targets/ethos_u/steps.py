"""Results of the partitioner: quantized tensors, and steps that compute one from others on the accelerator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from schedules.ir.tvm_types import Var
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.layout import Arrangement, channels_first, channels_last
from targets.ethos_u.tosa import Shape, Tensor, TosaGraph

Array = np.ndarray


class Unsupported(Exception):  # noqa: N818  (a verdict on an operator, caught by the partitioner, not an error)
    """Reason why the accelerator cannot take an operator."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """An 8-bit tensor of the graph.

    Attributes:
        variable: what holds it.
        scale: scale of one step.
        zero: as int8; of a uint8 tensor 128 less, since the accelerator sees its values 128 less too.
        unsigned: whether the graph holds it as uint8.
    """

    variable: Var
    shape: Shape
    scale: float
    zero: int
    unsigned: bool

    @property
    def sizes(self) -> str:
        """Its shape in reports: 1x16x8x8."""
        return "x".join(map(str, self.shape))

    def same_numbers(self, other: Quantized) -> bool:
        """True if equal integers mean equal values."""
        return self.scale == other.scale and self.zero == other.zero


@dataclass(frozen=True)
class Value:
    """A tensor on the accelerator. `last` says that it lies with its channels last (N, H, W, C)."""

    tensor: Tensor
    last: bool

    def position(self, axis: int) -> int:
        """Position of an axis of the model."""
        return channels_first(len(self.tensor.shape))[axis] if self.last else axis


Emit = Callable[["Emitter", Sequence[Value]], Value]


@dataclass(frozen=True)
class Form:
    """A way to write a step.

    Attributes:
        arrangement: in which the processor hands over the first input, which it makes and nothing else reads; None as
            it is.
    """

    emit: Emit
    arrangement: Arrangement | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One quantized operator.

    Attributes:
        operator: for reports.
        sizes: sizes of the operator, for reports.
        macs: multiply-adds.
        emit: writes it: given the graph and its inputs, the result.
        forms: other ways to write it, by name, whose result is the same bytes; `tune` chooses among them.
        arrangement: as of the form that is written.
    """

    operator: str
    sizes: str
    inputs: tuple[Quantized, ...]
    output: Quantized
    macs: int
    emit: Emit
    forms: Mapping[str, Form] = field(default_factory=dict)
    arrangement: Arrangement | None = None

    def in_form(self, name: str) -> Step:
        """The step written in one of its forms."""
        form = self.forms[name]
        return replace(self, emit=form.emit, arrangement=form.arrangement)


@dataclass(frozen=True)
class Result:
    """Required result of an operator: integers of `output`, limited to [low, high], of `core + bias`."""

    output: Quantized
    low: int
    high: int
    bias: Array | None
    accelerator: Accelerator

    def integers(self, numbers: Array) -> Array:
        """Numbers as int8 of the result."""
        steps = np.rint(numbers / self.output.scale) + self.output.zero
        return np.clip(steps, self.low, self.high).astype(np.int8)


class Emitter:
    """Writes steps into a TOSA graph and tracks layouts.

    With `turns_early`, images that a reshape makes get their channels last at once, not where an operator wants it.
    """

    def __init__(self, turns_early: bool = False) -> None:
        self.graph = TosaGraph()
        self.turns_early = turns_early

    def last(self, value: Value) -> Tensor:
        """A tensor of three axes or more with its channels last."""
        x = value.tensor
        return x if value.last else self.graph.transpose(x, channels_last(len(x.shape)))

    def first(self, value: Value) -> Tensor:
        """The tensor with its axes as in the model."""
        x = value.tensor
        return self.graph.transpose(x, channels_first(len(x.shape))) if value.last else x

    def made(self, tensor: Tensor, last: bool = True) -> Value:
        """The result of a step."""
        return Value(tensor, last and len(tensor.shape) >= 3)

    def together(self, values: Sequence[Value]) -> tuple[list[Tensor], bool]:
        """Tensors of one rank in one layout, and whether that has channels last."""
        last = any(each.last for each in values)
        return [self.last(each) if last else each.tensor for each in values], last

    def looked_up(self, x: Tensor, data: Quantized, result: Result) -> Tensor:
        """Like `rescaled`, through a table. Vela 5.2 loses a RESCALE between what it writes piece by piece (CONCAT,
        PAD, TILE) and a CONCAT."""
        if data.same_numbers(result.output):
            return self.graph.clamp(x, result.low, result.high)
        return self.table(x, data, result)

    def table(self, x: Tensor, data: Quantized, result: Result) -> Tensor:
        """Like `rescaled`, through a table in any case."""
        values = (np.arange(-128, 128) - data.zero) * data.scale
        entries = self.graph.constant(result.integers(values))
        return self.graph.emit("TABLE", [x, entries], x.shape, "int8", "TableAttribute")

    def rows(self, value: Value, axes: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Value]]:
        """Axes of the model as the last of (1, rows, 1, size), and how a tensor of that shape is put back."""
        rank = len(value.tensor.shape)
        order = [value.position(axis) for axis in (*(each for each in range(rank) if each not in axes), *axes)]
        moved = self.graph.transpose(value.tensor, order)
        kept = math.prod(moved.shape[: rank - len(axes)])
        rows = self.graph.reshape(moved, (1, kept, 1, math.prod(moved.shape) // kept))

        def put_back(tensor: Tensor) -> Value:
            whole = self.graph.transpose(self.graph.reshape(tensor, moved.shape), [order.index(n) for n in range(rank)])
            return self.made(whole, value.last)

        return rows, put_back

    def rescaled(self, x: Tensor, data: Quantized, result: Result) -> Tensor:
        """int8 integers of `data` as those of the result, limited."""
        if not data.same_numbers(result.output):
            ratio = data.scale / result.output.scale
            x = self.graph.rescale(x, [ratio], "int8", zero=data.zero, output_zero=result.output.zero)
        return self.graph.clamp(x, result.low, result.high)

    def finished(self, sums: Tensor, scales: Sequence[float], result: Result) -> Tensor:
        """int32 sums as the int8 integers of the result, limited."""
        scaled = self.graph.rescale(sums, scales, "int8", output_zero=result.output.zero)
        return self.graph.clamp(scaled, result.low, result.high)
