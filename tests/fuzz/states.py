"""The states suite: sessions of random programs over states, forked, reset and restored, equal PyTorch step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compiler.runtime import Module
from compiler.runtime.session import Session
from tests.fuzz.growing_programs import growing_case
from tests.fuzz.outcome import Outcome
from tests.fuzz.state_programs import Program, random_program

_RUNS = 5
_GROWING = 4  # one of this many programs
_TOLERANCE = 2e-5


def prepare(folder: Path) -> None:
    """Do nothing: each case makes its own program."""


def case(_: None, seed: int) -> Outcome:
    """Compile the program of a seed and run sessions of it; every fourth has growing states."""
    import compiler

    if seed % _GROWING == _GROWING - 1:
        return growing_case(seed)
    torch.set_num_threads(1)
    program = random_program(seed)
    assert program.model is not None
    label = f"{len(program.states)} states"
    verify = seed % 10 == 0
    given = {**_inputs(program, seed), **{name: value.numpy() for name, value in _initial(program).items()}}
    try:
        module = compiler.compile(
            program.model, threads=1, verify=verify, reference_inputs=given if verify else None, progress=None
        )
        problem = _walk(program, module, restores=bool(seed % 2))
    except Exception as error:
        return Outcome("exception", label, f"{type(error).__name__}: {error}")
    return Outcome("right", label) if problem is None else Outcome("wrong", label, problem)


def _walk(program: Program, module: Module, *, restores: bool) -> str | None:
    """Runs of a session and of a fork of it, and a run without a session; what is wrong, or None. The session goes back
    to a snapshot or, not `restores`, to its beginning."""
    session = module.session(sizes=program.symbols)
    states = _initial(program)
    pairs = [(session, states)]
    for run in range(_RUNS):
        if run == 1:
            snapshot, kept = session.snapshot(), dict(states)
        if run == 2:
            pairs.append((session.fork(), dict(pairs[0][1])))
        if run == 3 and restores:
            session.restore(snapshot)
            pairs[0] = session, kept
        elif run == 3:
            session.reset()
            pairs[0] = session, _initial(program)
        for number, (each, expected) in enumerate(pairs):
            inputs = _inputs(program, 10 * run + number)
            problem = _step(program, each, inputs, expected)
            if problem is not None:
                return f"run {run} of session {number}: {problem}"
    return _without_session(program, module, pairs[1][1])


def _initial(program: Program) -> dict[str, Tensor]:
    shapes = {state.name: state.versions[0].shape for state in program.states}
    return {
        state.name: torch.zeros(shapes[state.name]) if state.initial is None else torch.from_numpy(state.initial)
        for state in program.states
    }


def _inputs(program: Program, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    names = {state.name for state in program.states}
    inputs = {}
    for spec in program.inputs:
        if spec.name in names:
            continue
        shape = tuple(int(size) for size in spec.shape)
        floats = spec.dtype == "float32"
        inputs[spec.name] = random.standard_normal(shape).astype("float32") if floats else random.integers(0, 4, shape)
    return inputs


def _step(program: Program, session: Session, inputs: dict[str, np.ndarray], states: dict[str, Tensor]) -> str | None:
    """Run both once; `states` is updated to PyTorch's."""
    got = session.run(inputs)
    expected, after = program.run(inputs, states)
    states.update(after)
    return _difference(list(got.values()), expected) or _difference(
        [session.states[name] for name in after], list(after.values())
    )


def _without_session(program: Program, module: Module, states: dict[str, Tensor]) -> str | None:
    inputs = _inputs(program, 99)
    given = {name: value.numpy().copy() for name, value in states.items()}
    got = module.run({**inputs, **given})
    expected, after = program.run(inputs, states)
    changed = [name for name, value in states.items() if not np.array_equal(value.numpy(), given[name])]
    if changed:
        return f"a run without a session changed {changed[0]}"
    return _difference(list(got.values()), [*expected, *after.values()])


def _difference(got: list[np.ndarray], expected: list[Tensor]) -> str | None:
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        right = theirs.numpy()
        if ours.shape != right.shape:
            return f"result {index} has the shape {ours.shape}, not {right.shape}"
        error = float(np.abs(ours - right).max(initial=0.0))
        if not error <= _TOLERANCE * max(1.0, float(np.abs(right).max(initial=0.0))):
            return f"result {index} differs by {error:.3g}"
    return None
