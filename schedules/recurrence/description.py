"""Description of a kernel of a recurrent layer, as plain data: the kernel carries it as JSON in an attribute."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from schedules.ir.tir import Buffer, Expr
from schedules.recurrence.cells import ActivationChoice, Cell, Stage, gru_cell, lstm_cell, rnn_cell

ATTRIBUTE = "tensorwright.recurrence"
HINTS = {1: "rnn", 3: "gru", 4: "lstm"}


@dataclass(frozen=True)
class CellKind:
    """Cell: "RNN", "GRU" or "LSTM", and its variant."""

    operator: str
    linear_before_reset: bool = False
    input_forget: bool = False
    has_peepholes: bool = False

    def cell(self) -> Cell:
        """The cell's gates and stages."""
        if self.operator == "RNN":
            return rnn_cell()
        if self.operator == "GRU":
            return gru_cell(linear_before_reset=self.linear_before_reset)
        return lstm_cell(input_forget=self.input_forget, has_peepholes=self.has_peepholes)


@dataclass(frozen=True)
class Recurrence:
    """Computation of one kernel.

    Attributes:
        activations: activations of each direction, in the order of the operator.
        backward: which directions run back in time.
        hidden, inputs: numbers of hidden units and of features.
        lanes: hidden units a block; weights are packed in blocks.
        operands: roles of the kernel's inputs, in their order; its outputs are Y and the last states.
        projects_input: whether the kernel multiplies the input by its weights; else `x` is the finished projection
            (steps, samples, directions, blocks, gates, lanes).
        quantized: whether the state is quantized in each step and multiplied as integers (DynamicQuantizeLSTM).
    """

    kind: CellKind
    activations: tuple[tuple[ActivationChoice, ...], ...]
    backward: tuple[bool, ...]
    hidden: int
    inputs: int
    lanes: int
    dtype: str
    operands: tuple[str, ...] = ()
    clip: float | None = None
    projects_input: bool = False
    quantized: bool = False

    @cached_property
    def cell(self) -> Cell:
        """The cell's gates and states."""
        return self.kind.cell()

    @cached_property
    def stages(self) -> tuple[tuple[Stage, ...], ...]:
        """The stages of each direction."""
        return tuple(tuple(self.cell.stages([each.function() for each in own], self.clip)) for own in self.activations)

    @property
    def directions(self) -> int:
        """Number of directions."""
        return len(self.backward)

    @property
    def has_lengths(self) -> bool:
        """True if each sample has a length of its own."""
        return "lengths" in self.operands

    @property
    def blocks(self) -> int:
        """Blocks of hidden units."""
        return -(-self.hidden // self.lanes)

    @property
    def width(self) -> int:
        """Hidden units with those that fill the last block."""
        return self.blocks * self.lanes

    def text(self) -> str:
        """JSON text, for `parse`."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def parse(text: str) -> Recurrence:
    """Parse the text of `Recurrence.text`."""
    fields: dict[str, Any] = json.loads(text)
    activations = tuple(tuple(ActivationChoice(**each) for each in own) for own in fields.pop("activations"))
    return Recurrence(
        kind=CellKind(**fields.pop("kind")),
        activations=activations,
        backward=tuple(fields.pop("backward")),
        operands=tuple(fields.pop("operands")),
        **fields,
    )


class Operands:
    """A kernel's input buffers by role."""

    def __init__(self, names: Sequence[str], buffers: Sequence[Buffer]) -> None:
        self._buffers: Mapping[str, Expr] = dict(zip(names, buffers, strict=True))

    def __getitem__(self, name: str) -> Expr:
        return self._buffers[name]

    def __contains__(self, name: str) -> bool:
        return name in self._buffers
