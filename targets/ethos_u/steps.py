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


class Unsupported(Exception):  # noqa: N818  (a refusal of an operator, caught by the partitioner, not an error)
    """Reason why the accelerator cannot run an operator."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """An 8-bit tensor of the graph.

    Attributes:
        variable: the variable that holds it.
        scale: scale of one step.
        zero: zero point as int8; for a uint8 tensor minus 128, since the accelerator also sees its values minus 128.
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
    """A tensor on the accelerator. `last` means that its channels are last (N, H, W, C)."""

    tensor: Tensor
    last: bool

    def position(self, axis: int) -> int:
        """Position on the accelerator of an axis of the model."""
        return channels_first(len(self.tensor.shape))[axis] if self.last else axis


Emit = Callable[["Emitter", Sequence[Value]], Value]


@dataclass(frozen=True)
class Form:
    """A way to emit a step. `arrangement`: the layout in which the processor passes the first input, which it computes
    and nothing else reads; None: unchanged."""

    emit: Emit
    arrangement: Arrangement | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One quantized operator.

    Attributes:
        operator: for reports.
        sizes: sizes of the operator, for reports.
        macs: multiply-adds.
        emit: emits it: given the graph and its inputs, returns the result.
        forms: alternative ways to emit it, by name, with the same result; `tune` chooses among them.
        arrangement: that of the current form.
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
        """The step in one of its forms."""
        form = self.forms[name]
        return replace(self, emit=form.emit, arrangement=form.arrangement)


@dataclass(frozen=True)
class Result:
    """Required result of an operator: integers of `output`, clamped to [low, high], of `core + bias`."""

    output: Quantized
    low: int
    high: int
    bias: Array | None
    accelerator: Accelerator

    def integers(self, numbers: Array) -> Array:
        """Numbers quantized to int8 like the result."""
        steps = np.rint(numbers / self.output.scale) + self.output.zero
        return np.clip(steps, self.low, self.high).astype(np.int8)


class Emitter:
    """Emits steps into a TOSA graph and tracks layouts.

    With `turns_early`, the result of a reshape gets channels last immediately, not only when an operator needs it.
    """

    def __init__(self, turns_early: bool = False) -> None:
        self.graph = TosaGraph()
        self.turns_early = turns_early

    def last(self, value: Value) -> Tensor:
        """A tensor of at least three axes with its channels last."""
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
        """Tensors of the same rank in the same layout, and whether that has channels last."""
        last = any(each.last for each in values)
        return [self.last(each) if last else each.tensor for each in values], last

    def looked_up(self, x: Tensor, data: Quantized, result: Result) -> Tensor:
        """Like `rescaled`, through a table. Vela 5.2 loses a RESCALE between operators that it writes piece by piece
        (CONCAT, PAD, TILE) and a CONCAT."""
        if data.same_numbers(result.output):
            return self.graph.clamp(x, result.low, result.high)
        return self.table(x, data, result)

    def table(self, x: Tensor, data: Quantized, result: Result) -> Tensor:
        """Like `rescaled`, always through a table."""
        values = (np.arange(-128, 128) - data.zero) * data.scale
        entries = self.graph.constant(result.integers(values))
        return self.graph.emit("TABLE", [x, entries], x.shape, "int8", "TableAttribute")

    def rows(self, value: Value, axes: Sequence[int]) -> tuple[Tensor, Callable[[Tensor], Value]]:
        """Move axes of the model to the last of (1, rows, 1, size); also returns the function that moves them back."""
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
        """int8 integers of `data` rescaled to the result, clamped."""
        if not data.same_numbers(result.output):
            ratio = data.scale / result.output.scale
            x = self.graph.rescale(x, [ratio], "int8", zero=data.zero, output_zero=result.output.zero)
        return self.graph.clamp(x, result.low, result.high)

    def finished(self, sums: Tensor, scales: Sequence[float], result: Result) -> Tensor:
        """int32 sums converted to int8 integers of the result, clamped."""
        scaled = self.graph.rescale(sums, scales, "int8", output_zero=result.output.zero)
        return self.graph.clamp(scaled, result.low, result.high)
