"""Random programs with states, in Relax and in PyTorch: writes at computed positions, reads before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tvm import relax, tirx

from compiler.frontends.imported_model import ImportedModel, StateSpec, TensorSpec
from compiler.passes.rewriting.state_writes import write_positions, write_rows

Random = np.random.Generator
Evaluate = Callable[[list[Tensor]], Tensor]
op = relax.op


@dataclass
class Value:
    """A tensor of a program: its position among the values, its Relax variable and its shape."""

    index: int
    variable: Any
    shape: tuple[int, ...]


@dataclass
class StateValue:
    """A state: its initial and current value in the program, and the axis of its rows."""

    name: str
    versions: list[Value]
    axis: int | None
    initial: np.ndarray | None


@dataclass
class Program:
    """A model, and functions that compute its values in order from earlier ones; inputs come first."""

    random: Random
    inputs: list[TensorSpec] = field(default_factory=list)
    variables: list[Any] = field(default_factory=list)
    evaluations: list[Evaluate] = field(default_factory=list)
    states: list[StateValue] = field(default_factory=list)
    floats: list[Value] = field(default_factory=list)
    places: list[tuple[Value, int]] = field(default_factory=list)
    results: list[int] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    model: ImportedModel | None = None

    def input(self, name: str, shape: tuple[int, ...], dtype: str, symbol: int | None = None) -> Value:
        """An input; its axis `symbol` is symbolic in the model."""
        sizes: list[Any] = list(shape)
        names: list[int | str] = list(shape)
        if symbol is not None:
            names[symbol] = f"size_{name}"
            sizes[symbol] = tirx.Var(f"size_{name}", "int64")
            self.symbols[f"size_{name}"] = shape[symbol]
        variable = relax.Var(name, relax.TensorType(sizes, dtype))
        self.inputs.append(TensorSpec(name, tuple(names), dtype))
        self.variables.append(variable)
        return Value(len(self.inputs) - 1, variable, shape)

    def emit(self, builder: Any, expr: Any, shape: tuple[int, ...], evaluate: Evaluate) -> Value:
        """Append a value computed from others."""
        self.evaluations.append(evaluate)
        return Value(len(self.inputs) + len(self.evaluations) - 1, builder.emit(expr), shape)

    def run(self, inputs: dict[str, np.ndarray], states: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """(results other than states, next states), computed by PyTorch."""
        env = [
            states[spec.name] if spec.name in states else torch.from_numpy(np.asarray(inputs[spec.name]))
            for spec in self.inputs
        ]
        for evaluate in self.evaluations:
            env.append(evaluate(env))
        after = {state.name: env[state.versions[-1].index] for state in self.states}
        return [env[index] for index in self.results], after


def random_program(seed: int) -> Program:
    """One to four states, some of them written several times, and two to nine steps."""
    random = np.random.default_rng(seed)
    program = Program(random)
    for number in range(int(random.integers(1, 5))):
        _add_state(program, f"state{number}")
    shape = (int(random.integers(1, 4)), int(random.integers(1, 20)))
    program.floats += [program.input(name, shape, "float32") for name in ("x", "y")]
    count = int(random.integers(1, 4))
    at = program.input("at", (), "int64")
    each = program.input("each", (count,), "int64")
    builder = relax.BlockBuilder()
    with builder.function("main", program.variables):
        with builder.dataflow():
            for _ in range(int(random.integers(2, 10))):
                step = _STEPS[int(random.integers(len(_STEPS)))]
                step(program, builder, at, each)
            _replace_some_whole(program, builder)
            fields = _choose_results(program)
            result = builder.emit_output(relax.Tuple([value.variable for value in fields]))
        builder.emit_func_output(result)
    _finish(program, builder.finalize(), fields)
    return program


def _add_state(program: Program, name: str) -> None:
    random = program.random
    rank = int(random.integers(1, 4))
    shape = tuple(int(random.choice((1, 2, 3, 5, 17))) for _ in range(rank))
    axis = int(random.integers(rank)) if random.random() < 0.7 else None
    initial = None
    symbol = None
    if axis is not None:
        shape = (*shape[:axis], int(random.integers(4, 12)), *shape[axis + 1 :])
        symbol = axis if random.random() < 0.3 else None
    if symbol is None and random.random() < 0.4:
        initial = random.standard_normal(shape).astype("float32")
    value = program.input(name, shape, "float32", symbol)
    program.states.append(StateValue(name, [value], axis, initial))


def _some_state(program: Program, *, rows: bool = False) -> StateValue | None:
    found = [state for state in program.states if state.axis is not None or not rows]
    return found[int(program.random.integers(len(found)))] if found else None


def _some_version(program: Program) -> Value:
    """The newest or an older value of a state."""
    state = program.states[int(program.random.integers(len(program.states)))]
    if program.random.random() < 0.6:
        return state.versions[-1]
    return state.versions[int(program.random.integers(len(state.versions)))]


def _read(program: Program, builder: Any, _at: Value, _each: Value) -> None:
    """Add a number read from a version of a state to a float."""
    version, base = _some_version(program), _some_float(program)
    i, j = version.index, base.index
    reduced = op.mean(version.variable) if program.random.random() < 0.5 else op.max(version.variable)
    largest = "max" in str(reduced.op)
    expr = op.add(base.variable, builder.emit(reduced))

    def evaluate(env: list[Tensor]) -> Tensor:
        return env[j] + (env[i].max() if largest else env[i].mean())

    program.floats.append(program.emit(builder, expr, base.shape, evaluate))


def _combine(program: Program, builder: Any, _at: Value, _each: Value) -> None:
    a, b = _some_float(program), _some_float(program)
    i, j = a.index, b.index
    expr = op.tanh(builder.emit(op.add(a.variable, b.variable)))
    program.floats.append(program.emit(builder, expr, a.shape, lambda env: torch.tanh(env[i] + env[j])))


def _some_float(program: Program) -> Value:
    return program.floats[int(program.random.integers(len(program.floats)))]


def _rows(program: Program, builder: Any, state: StateValue, count: int) -> Value:
    """Rows from a float's mean, or from the state's own first rows, which a write must not overwrite too early."""
    axis, old = state.axis, state.versions[int(program.random.integers(len(state.versions)))]
    assert axis is not None
    shape = (*old.shape[:axis], count, *old.shape[axis + 1 :])
    base = _some_float(program)
    i, j = old.index, base.index
    mean = builder.emit(op.mean(base.variable))
    first = builder.emit(op.strided_slice(old.variable, axes=[axis], begin=[0], end=[count]))
    if program.random.random() < 0.3:
        return program.emit(
            builder, op.add(first, mean), shape, lambda env: env[i].narrow(axis, 0, count) + env[j].mean()
        )
    ramp = np.arange(np.prod(shape), dtype="float32").reshape(shape) / 7
    expr = op.add(relax.const(ramp), mean)
    return program.emit(builder, expr, shape, lambda env: torch.from_numpy(ramp) + env[j].mean())


def _write_run(program: Program, builder: Any, at: Value, _each: Value) -> None:
    state = _some_state(program, rows=True)
    if state is None or state.axis is None:
        return
    axis, old = state.axis, state.versions[-1]
    count = int(program.random.integers(1, 4))
    rows = _rows(program, builder, state, count)
    shift = int(program.random.integers(0, 3))
    last = old.shape[axis] - count
    limited = op.minimum(builder.emit(op.add(at.variable, relax.const(shift, "int64"))), relax.const(last, "int64"))
    samples = old.shape[0] if axis > 0 and program.random.random() < 0.3 else None
    place = builder.emit(limited)
    if samples is not None:
        place = builder.emit(op.broadcast_to(place, (samples,)))
    variable = write_rows(builder, old.variable, rows.variable, place, axis)
    i, j, k = old.index, rows.index, at.index

    def evaluate(env: list[Tensor]) -> Tensor:
        first = min(int(env[k]) + shift, last)
        new = env[i].clone()
        new.narrow(axis, first, count).copy_(env[j])
        return new

    state.versions.append(program.emit(builder, variable, old.shape, evaluate))


def _write_each(program: Program, builder: Any, _at: Value, each: Value) -> None:
    state = _some_state(program, rows=True)
    if state is None or state.axis is None:
        return
    axis, old = state.axis, state.versions[-1]
    rows = _rows(program, builder, state, each.shape[0])
    variable = write_positions(builder, old.variable, rows.variable, each.variable, axis)
    i, j, k = old.index, rows.index, each.index

    def evaluate(env: list[Tensor]) -> Tensor:
        new = env[i].clone()
        for row, place in enumerate(env[k].tolist()):  # in order: the last of equal positions wins
            new.select(axis, place).copy_(env[j].select(axis, row))
        return new

    state.versions.append(program.emit(builder, variable, old.shape, evaluate))


def _whole(program: Program, builder: Any, _at: Value, _each: Value) -> None:
    """Replace a state by a function of it and a number."""
    state = _some_state(program)
    if state is None:
        return
    old, base = state.versions[-1], _some_float(program)
    i, j = old.index, base.index
    mean = builder.emit(op.mean(base.variable))
    expr = op.multiply(builder.emit(op.add(old.variable, mean)), relax.const(0.5, "float32"))
    state.versions.append(program.emit(builder, expr, old.shape, lambda env: (env[i] + env[j].mean()) * 0.5))


_STEPS = (_read, _read, _combine, _write_run, _write_run, _write_each, _write_each, _whole)


def _replace_some_whole(program: Program, _builder: Any) -> None:
    """Sometimes exchange two states of equal shape, or assign one's old value to the other."""
    for one in program.states:
        for other in program.states:
            alike = (
                one is not other
                and program.inputs[one.versions[0].index].shape == program.inputs[other.versions[0].index].shape
            )
            if alike and program.random.random() < 0.5:
                source = other.versions[int(program.random.integers(len(other.versions)))]
                one.versions.append(source)


def _choose_results(program: Program) -> list[Value]:
    """The states' last values and some others, including old state values, in any order."""
    random = program.random
    others = [program.floats[-1], *(each for each in program.floats[2:-1] if random.random() < 0.3)]
    others += [version for state in program.states for version in state.versions if random.random() < 0.2]
    program.results = [value.index for value in others]
    return [*others, *(state.versions[-1] for state in program.states)]


def _finish(program: Program, mod: Any, fields: list[Value]) -> None:
    plain = len(program.results)
    names = [f"result{index}" for index in range(plain)] + [f"{state.name}_next" for state in program.states]
    shapes = [tuple(value.shape) for value in fields]
    outputs = [TensorSpec(name, shape, "float32") for name, shape in zip(names, shapes, strict=True)]
    given = {spec.name: spec for spec in program.inputs}
    for number, state in enumerate(program.states):
        outputs[plain + number] = TensorSpec(f"{state.name}_next", given[state.name].shape, "float32")
    states = tuple(StateSpec(each.name, each.name, f"{each.name}_next", each.initial) for each in program.states)
    program.model = ImportedModel(mod, program.inputs, outputs, states=states)
