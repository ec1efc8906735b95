"""What the partitioner finds: quantized tensors, and steps that compute one from others on the accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.tosa import Shape, Tensor, TosaGraph

Array = np.ndarray[Any, Any]
_LAST = (0, 2, 3, 1)
_FIRST = (0, 3, 1, 2)


class Unsupported(Exception):  # noqa: N818  (a verdict on an operator, caught by the partitioner, not an error)
    """Why the accelerator can not take an operator."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """An 8-bit tensor of the graph.

    Attributes:
        variable: what holds it.
        scale: of one step.
        zero: as int8; of a uint8 tensor 128 less, since the accelerator sees its values 128 less too.
        unsigned: whether the graph holds it as uint8.
    """

    variable: Any
    shape: Shape
    scale: float
    zero: int
    unsigned: bool

    def same_numbers(self, other: Quantized) -> bool:
        """Whether equal integers mean equal values."""
        return self.scale == other.scale and self.zero == other.zero


@dataclass(frozen=True)
class Value:
    """A tensor on the accelerator. `last` says that a rank-4 tensor lies with its channels last (N, H, W, C)."""

    tensor: Tensor
    last: bool


@dataclass(frozen=True, eq=False)
class Step:
    """One quantized operator.

    Attributes:
        operator: for reports.
        sizes: of the operator, for reports.
        macs: multiply-adds.
        emit: writes it: given the graph and its inputs, the result.
    """

    operator: str
    sizes: str
    inputs: tuple[Quantized, ...]
    output: Quantized
    macs: int
    emit: Callable[[Emitter, Sequence[Value]], Value]


@dataclass(frozen=True)
class Result:
    """What an operator has to produce: integers of `output`, limited to [low, high], of `core + bias`."""

    output: Quantized
    low: int
    high: int
    bias: Array | None
    accelerator: Accelerator


class Emitter:
    """Writes steps into a TOSA graph and keeps account of layouts."""

    def __init__(self) -> None:
        self.graph = TosaGraph()

    def last(self, value: Value) -> Tensor:
        """A rank-4 tensor with its channels last."""
        return value.tensor if value.last else self.graph.transpose(value.tensor, _LAST)

    def first(self, value: Value) -> Tensor:
        """The tensor with its axes as in the model."""
        return self.graph.transpose(value.tensor, _FIRST) if value.last else value.tensor

    def made(self, tensor: Tensor, last: bool = True) -> Value:
        """The result of a step."""
        return Value(tensor, last and len(tensor.shape) == 4)

    def together(self, values: Sequence[Value]) -> tuple[list[Tensor], bool]:
        """Tensors of one rank in one layout, and whether that has channels last."""
        last = any(each.last for each in values)
        return [self.last(each) if last else each.tensor for each in values], last

    def finished(self, sums: Tensor, scales: Sequence[float], result: Result) -> Tensor:
        """int32 sums as the int8 integers of the result, limited."""
        scaled = self.graph.rescale(sums, scales, "int8", output_zero=result.output.zero)
        return self.graph.clamp(scaled, result.low, result.high)
