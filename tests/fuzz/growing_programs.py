"""Random programs whose states grow by concatenation, with a capacity: their sessions equal numpy at every step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax, tirx

from compiler.errors import InputError
from compiler.frontends.imported_model import ImportedModel, StateSpec, TensorSpec
from compiler.frontends.state_capacity import with_capacity
from compiler.runtime import Module
from compiler.runtime.session import Session
from tests.fuzz.outcome import Outcome

Array = np.ndarray
op = relax.op
_STEPS = 7
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Growing:
    """One state: its sizes except for the rows along `axis`, and the values read from it."""

    shape: tuple[int, ...]
    axis: int
    reads_past: bool
    returns_rows: bool

    def sized(self, count: int) -> tuple[int, ...]:
        """The shape with a number of rows."""
        return (*self.shape[: self.axis], count, *self.shape[self.axis :])


def growing_case(seed: int) -> Outcome:
    """Compile the program of a seed with a capacity, and run steps of a session."""
    import compiler

    random = np.random.default_rng(seed)
    states = [_state(random) for _ in range(int(random.integers(1, 4)))]
    capacity = int(random.integers(4, 14))
    named = bool(random.random() < 0.5)
    sizes = {"n": [1, 3]} if random.random() < 0.25 else None
    label = f"{len(states)} growing"
    try:
        model = with_capacity(_model(states), "capacity" if named else capacity)
        module = compiler.compile(model, threads=1, sizes=sizes, verify=seed % 20 == 3, progress=None)
        problem = _walk(states, module, capacity if named else None, capacity, random)
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    return Outcome("right", label) if problem is None else Outcome("wrong", label, problem)


def _state(random: np.random.Generator) -> Growing:
    shape = tuple(int(size) for size in random.choice((1, 2, 3, 5, 17), int(random.integers(0, 4))))
    axis = int(random.integers(len(shape) + 1))
    return Growing(shape, axis, bool(random.random() < 0.4), bool(random.random() < 0.4))


def _model(states: list[Growing]) -> ImportedModel:
    n = tirx.Var("n", "int64")
    variables, inputs = [], []
    for number, state in enumerate(states):
        past = tirx.Var(f"past{number}", "int64")  # exporters use a separate name for the same size of each state
        for name, size in ((f"rows{number}", n), (f"state{number}", past)):
            shape = (*state.shape[: state.axis], size, *state.shape[state.axis :])
            variables.append(relax.Var(name, relax.TensorType(list(shape), "float32")))
            names = tuple(each if isinstance(each, int) else str(each.name) for each in shape)
            inputs.append(TensorSpec(name, names, "float32"))
    builder = relax.BlockBuilder()
    fields, outputs, specs = [], [], []
    with builder.function("main", variables):
        with builder.dataflow():
            for number, state in enumerate(states):
                rows, past = variables[2 * number : 2 * number + 2]
                present = builder.emit(op.concat([past, rows], axis=state.axis))
                sizes: tuple[int | str, ...] = (
                    *state.shape[: state.axis],
                    f"past{number} + n",
                    *state.shape[state.axis :],
                )
                read = op.sum(builder.emit(op.multiply(present, present)))
                fields.append(builder.emit(op.add(read, op.sum(past)) if state.reads_past else read))
                outputs.append(TensorSpec(f"read{number}", (), "float32"))
                if state.returns_rows:
                    fields.append(builder.emit(op.tanh(present)))
                    outputs.append(TensorSpec(f"rows_of{number}", sizes, "float32"))
                fields.append(present)
                outputs.append(TensorSpec(f"next{number}", sizes, "float32"))
                specs.append(
                    StateSpec(f"state{number}", f"state{number}", f"next{number}", axis=state.axis, grows=True)
                )
            result = builder.emit_output(relax.Tuple(fields))
        builder.emit_func_output(result)
    return ImportedModel(builder.finalize(), inputs, outputs, states=tuple(specs))


def _walk(
    states: list[Growing], module: Module, opened: int | None, capacity: int, random: np.random.Generator
) -> str | None:
    """Run steps of a session, rewound, forked and filled at random; return the fault, or None."""
    session = module.session(capacity=opened)
    pasts = [np.zeros(state.sized(0), "float32") for state in states]
    for step in range(_STEPS):
        count, length = int(random.integers(1, 5)), session.length
        rows = [random.standard_normal(state.sized(count)).astype("float32") for state in states]
        inputs = {f"rows{number}": each for number, each in enumerate(rows)}
        if length + count > capacity:
            problem = _refused(session, inputs)
            if problem is not None:
                return f"step {step}: {problem}"
            back = int(random.integers(1, length + 1))
            session.rewind(back)
            pasts = [_first(past, state, length - back) for past, state in zip(pasts, states, strict=True)]
            continue
        if random.random() < 0.3:
            session = session.fork()
        got = session.run(inputs)
        for number, state in enumerate(states):
            past, present = pasts[number], np.concatenate([pasts[number], rows[number]], state.axis)
            expected = (present**2).sum() + (past.sum() if state.reads_past else 0)
            if abs(got[f"read{number}"] - expected) > _TOLERANCE * max(1.0, float(abs(expected)), float(present.size)):
                return f"step {step}: read{number} is {got[f'read{number}']}, not {expected}"
            if state.returns_rows and not np.allclose(got[f"rows_of{number}"], np.tanh(present), atol=1e-5):
                return f"step {step}: rows_of{number} differ"
            if not np.array_equal(_first(session.states[f"state{number}"], state, length + count), present):
                return f"step {step}: state{number} differs"
            pasts[number] = present
    return None


def _refused(session: Session, inputs: dict[str, Array]) -> str | None:
    before = session.states
    try:
        session.run(inputs)
    except InputError:
        changed = [name for name, state in session.states.items() if not np.array_equal(state, before[name])]
        return f"a refused run changed {changed[0]}" if changed else None
    return "a run past the capacity is not refused"


def _first(array: Array, state: Growing, count: int) -> Array:
    return array[(slice(None),) * state.axis + (slice(0, count),)]
