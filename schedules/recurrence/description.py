"""Description of a kernel of a recurrent layer, as plain data: the kernel stores it as JSON in an attribute.

The cells of RNN, GRU and LSTM: which gates are summed together, and the update computed from the sums.

A cell runs in stages. A stage computes, for one block of hidden units, the sums of its gates, and then updates the
state of that block. Several stages are needed if a gate depends on another gate of all units.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from schedules.ir.tir import Buffer, Expr, tirx

# Activation functions of RNN, GRU and LSTM, by the names of ONNX in lower case.

Activation = Callable[[Any], Any]
Operands = Mapping[str, Buffer]  # a kernel's inputs by role


@dataclass(frozen=True)
class Kind:
    """A function of x, alpha and beta, and the defaults of those parameters that it has."""

    function: Callable[[Any, Any, Any], Any]
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class ActivationChoice:
    """A function with its parameters; `name` is a key of `KINDS`."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def function(self) -> Activation:
        """The function of one expression."""
        kind = KINDS[self.name]
        return lambda x: kind.function(x, self.alpha, self.beta)


def _const(value: float, like: Expr) -> Expr:
    return tirx.const(value, str(like.ty.dtype))


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return tirx.max(tirx.min(x, _const(high, x)), _const(low, x))


def _softplus(x: Expr) -> Expr:
    """log(1 + e^x) without overflow."""
    return tirx.max(x, _const(0, x)) + tirx.log(_const(1, x) + tirx.exp(-tirx.abs(x)))


KINDS: dict[str, Kind] = {
    "relu": Kind(lambda x, a, b: tirx.max(x, _const(0, x))),
    "tanh": Kind(lambda x, a, b: tirx.tanh(x)),
    "sigmoid": Kind(lambda x, a, b: tirx.sigmoid(x)),
    "affine": Kind(lambda x, a, b: _const(a, x) * x + _const(b, x), 1.0, 0.0),
    "leakyrelu": Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * x, x), 0.01),
    "thresholdedrelu": Kind(lambda x, a, b: tirx.Select(x > _const(a, x), x, _const(0, x)), 1.0),
    "scaledtanh": Kind(lambda x, a, b: _const(a, x) * tirx.tanh(_const(b, x) * x), 1.0, 1.0),
    "hardsigmoid": Kind(lambda x, a, b: _clamp(_const(a, x) * x + _const(b, x), 0.0, 1.0), 0.2, 0.5),
    "elu": Kind(lambda x, a, b: tirx.Select(x < _const(0, x), _const(a, x) * (tirx.exp(x) - _const(1, x)), x), 1.0),
    "softsign": Kind(lambda x, a, b: x / (_const(1, x) + tirx.abs(x))),
    "softplus": Kind(lambda x, a, b: _softplus(x)),
}


def clipped(x: Expr, threshold: float | None) -> Expr:
    """`x` within [-threshold, threshold]."""
    return x if threshold is None else _clamp(x, -threshold, threshold)


Update = Callable[[list[Any], dict[str, Any], list[Any]], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Sums of some gates.

    `gates` come from the input and from the recurrent state `source`. A gate in `separate` keeps its recurrent part in
    its own sum after the others, which starts from the recurrent bias.
    Each of `updates` receives the sums, the state of the unit and the peephole weights, and returns new states by name,
    which the next one sees.
    """

    gates: tuple[int, ...]
    source: str
    updates: tuple[Update, ...]
    separate: tuple[int, ...] = ()

    def recurrent_slot(self, gate: int) -> int:
        """Index of the sum that a gate's recurrent products are added to."""
        if gate in self.separate:
            return len(self.gates) + self.separate.index(gate)
        return self.gates.index(gate)

    @property
    def slots(self) -> int:
        return len(self.gates) + len(self.separate)


@dataclass(frozen=True)
class Cell:
    """A recurrent operator: number of gates, states, peepholes and activations, and its stages' factory."""

    gates: int
    states: tuple[str, ...]
    peepholes: int
    activations: tuple[str, ...]
    lanes: int
    stages: Callable[[Sequence[Activation], float | None], list[Stage]]


def rnn_cell() -> Cell:
    """h = f(x W + h R + b)."""

    def stages(functions: Sequence[Activation], clip: float | None) -> list[Stage]:
        def update(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            return {"next_h": functions[0](clipped(sums[0], clip))}

        return [Stage((0,), "h", (update,))]

    return Cell(1, ("h",), 0, ("Tanh",), 64, stages)


def gru_cell(*, linear_before_reset: bool) -> Cell:
    """z, r = f(...); n = g(x W + r (h R)) or g(x W + (r h) R); h = (1 - z) n + z h. Gates in the order z, r, n."""

    def blend(update: Expr, new: Expr, old: Expr) -> Expr:
        return (tirx.const(1, str(new.ty.dtype)) - update) * new + update * old

    def together(functions: Sequence[Activation], clip: float | None) -> list[Stage]:
        def update(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            z, r = (functions[0](clipped(value, clip)) for value in sums[:2])
            return {"next_h": blend(z, functions[1](clipped(sums[2] + r * sums[3], clip)), state["h"])}

        return [Stage((0, 1, 2), "h", (update,), separate=(2,))]

    def apart(functions: Sequence[Activation], clip: float | None) -> list[Stage]:
        def first(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            z, r = (functions[0](clipped(value, clip)) for value in sums)
            return {"z": z, "reset_h": r * state["h"]}

        def second(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            return {"next_h": blend(state["z"], functions[1](clipped(sums[0], clip)), state["h"])}

        return [Stage((0, 1), "h", (first,)), Stage((2,), "reset_h", (second,))]

    if linear_before_reset:
        return Cell(3, ("h",), 0, ("Sigmoid", "Tanh"), 16, together)
    return Cell(3, ("h",), 0, ("Sigmoid", "Tanh"), 32, apart)


def lstm_cell(*, input_forget: bool, has_peepholes: bool) -> Cell:
    """c = f c + i g(...); h = o h(c). Gates in the order i, o, f, c; peephole weights in the order i, o, f."""

    def stages(functions: Sequence[Activation], clip: float | None) -> list[Stage]:
        def new_cell(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            cell = state["c"]
            i, _, f, g = sums
            if has_peepholes:
                i, f = i + peepholes[0] * cell, f + peepholes[2] * cell
            i = functions[0](clipped(i, clip))
            forget = tirx.const(1, str(i.ty.dtype)) - i if input_forget else functions[0](clipped(f, clip))
            return {"c": forget * cell + i * functions[1](clipped(g, clip))}

        def output(sums: list[Expr], state: dict[str, Expr], peepholes: list[Expr]) -> dict[str, Expr]:
            o, cell = sums[1], state["c"]
            if has_peepholes:
                o = o + peepholes[1] * cell
            return {"next_h": functions[0](clipped(o, clip)) * functions[2](cell)}

        return [Stage((0, 1, 2, 3), "h", (new_cell, output))]

    return Cell(4, ("h", "c"), 3 if has_peepholes else 0, ("Sigmoid", "Tanh", "Tanh"), 16, stages)


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
        lanes: hidden units per block; weights are packed in blocks.
        operands: roles of the kernel's inputs, in their order; its outputs are Y and the last states.
        projects_input: whether the kernel multiplies the input by its weights; otherwise `x` is the finished projection
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
        """True if each sample has its own length."""
        return "lengths" in self.operands

    @property
    def blocks(self) -> int:
        """Blocks of hidden units."""
        return -(-self.hidden // self.lanes)

    @property
    def width(self) -> int:
        """Number of hidden units, padded to whole blocks."""
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
