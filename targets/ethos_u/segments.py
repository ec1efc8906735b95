"""Groups of steps that run on the accelerator as one program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from schedules.ir.tvm_types import Expr, Var
from targets.ethos_u.layout import Arrangement, channels_last
from targets.ethos_u.steps import Emitter, Quantized, Step, Value
from targets.ethos_u.view import View, variables


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output tensor; `last` if the accelerator stores its channels last and the model does not.
    `arrangement`: for an input with channels last: any further rearrangement by the processor."""

    tensor: Quantized
    last: bool
    arrangement: Arrangement | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape on the accelerator."""
        shape = self.tensor.shape
        found = tuple(shape[axis] for axis in channels_last(len(shape))) if self.last else shape
        return found if self.arrangement is None else self.arrangement.shape(found)


@dataclass(frozen=True, eq=False)
class Segment:
    """Steps in order, and the tensors they exchange with the processor."""

    steps: tuple[Step, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tosa: bytes


@dataclass(frozen=True, eq=False)
class Schedule:
    """Order in which a function's parts run.

    Attributes:
        parts: one segment for each level that has one, in order.
        levels: the level of each needed binding: those of level n run before the segment of level n, and read nothing
            computed later.
    """

    parts: dict[int, Segment]
    levels: dict[Var, int]


def schedule(view: View, steps: Mapping[Var, Step], results: Expr) -> Schedule:
    """The steps (by variable), each in one segment; segments do not wait for each other in cycles.

    The level of a value is the number of transfers from the accelerator to the processor before it.
    """
    reads = _needed(view, steps, results)
    levels: dict[Var, int] = {}
    for variable, operands in reads.items():
        needed_levels = [
            levels.get(operand, 0) + (1 if operand in steps and variable not in steps else 0) for operand in operands
        ]
        levels[variable] = max(needed_levels, default=0)
    parts = {}
    for level in sorted({levels[variable] for variable in reads if variable in steps}):
        chosen = {variable: steps[variable] for variable in reads if variable in steps and levels[variable] == level}
        read = {each for variable, operands in reads.items() if variable not in chosen for each in operands}
        read |= set(variables(results))
        inputs = {each.variable: each for step in chosen.values() for each in step.inputs}
        outputs = [step.output for variable, step in chosen.items() if variable in read]
        outside = [each for variable, each in inputs.items() if variable not in chosen]
        parts[level] = _written(tuple(chosen.values()), outside, outputs)
    return Schedule(parts, {variable: level for variable, level in levels.items() if variable not in steps})


def _needed(view: View, steps: Mapping[Var, Step], results: Expr) -> dict[Var, list[Expr]]:
    """Operands of each binding that the results need, in order; bindings inside a step are excluded."""
    needed = set(variables(results))
    reads: dict[Var, list[Var]] = {}
    for variable, value in reversed(view.bindings):
        if variable in needed:
            step = steps.get(variable)
            reads[variable] = [each.variable for each in step.inputs] if step is not None else list(variables(value))
            needed.update(reads[variable])
    return dict(reversed(reads.items()))


def turned_early(part: Segment) -> Segment:
    """The same segment with channels last as early as possible: other commands, for cases that Vela miscompiles."""
    inputs, outputs = ([port.tensor for port in ports] for ports in (part.inputs, part.outputs))
    return _written(part.steps, inputs, outputs, turns_early=True)


def _written(
    steps: tuple[Step, ...], inputs: Sequence[Quantized], outputs: Sequence[Quantized], *, turns_early: bool = False
) -> Segment:
    emitter = Emitter(turns_early)
    values: dict[Var, Value] = {}
    ports = []
    arrangements = {step.inputs[0].variable: step.arrangement for step in steps if step.arrangement is not None}
    for tensor in inputs:
        port = Port(tensor, len(tensor.shape) == 4, arrangements.get(tensor.variable))
        ports.append(port)
        values[tensor.variable] = Value(emitter.graph.input(port.shape), port.last)
    for step in steps:
        values[step.output.variable] = step.emit(emitter, [values[each.variable] for each in step.inputs])
    ports_out = []
    for tensor in outputs:
        value = values[tensor.variable]
        ports_out.append(Port(tensor, value.last))
        emitter.graph.output(value.tensor)
    return Segment(steps, tuple(ports), tuple(ports_out), emitter.graph.serialize())


def one_segment(steps: Sequence[Step]) -> Segment:
    """Given steps as one segment, for tests: values that none of them computes are inputs, those none reads outputs."""
    made = {step.output.variable for step in steps}
    inputs = {each.variable: each for step in steps for each in step.inputs if each.variable not in made}
    read = {each.variable for step in steps for each in step.inputs}
    outputs = [step.output for step in steps if step.output.variable not in read]
    return _written(tuple(steps), list(inputs.values()), outputs)
