"""Sessions: states against numpy step by step, independence of sessions, and refused calls."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import relax, tirx

import tensorwright
from compiler.errors import ArtifactError, InputError, OptionError
from compiler.frontends.imported_model import ImportedModel, PositionSpec, StateSpec
from compiler.frontends.source import import_relax
from compiler.passes.rewriting.state_writes import write_rows
from compiler.profiling.workload import as_module, complete_inputs
from compiler.runtime import Module
from compiler.runtime.session import Session

op = relax.op
Array = NDArray[Any]
INITIAL = np.full((2, 6), 0.5, "float32")


def model(*, with_mean: bool = True) -> ImportedModel:
    """A cache of rows of six numbers, a running mean over what is in it, and outputs of both."""
    tokens, capacity = tirx.Var("tokens", "int64"), tirx.Var("capacity", "int64")
    cache = relax.Var("cache", relax.TensorType((2, capacity, 6), "float32"))
    mean = relax.Var("mean", relax.TensorType((2, 6), "float32"))
    rows = relax.Var("rows", relax.TensorType((2, tokens, 6), "float32"))
    position = relax.Var("position", relax.TensorType((), "int64"))
    builder = relax.BlockBuilder()
    with builder.function("main", [cache, mean, rows, position]):
        with builder.dataflow():
            new = write_rows(builder, cache, rows, position, 1)
            total = builder.emit(op.sum(new, axis=[1]))
            moved = builder.emit(op.multiply(op.add(mean, total), relax.const(0.5, "float32")))
            output = builder.emit(op.add(moved, mean))
            result = builder.emit_output(relax.Tuple([output, new, moved]))
        builder.emit_func_output(result)
    imported = import_relax(builder.finalize())
    states = [StateSpec("cache", "cache", "output_1", axis=1)]
    if with_mean:
        states.append(StateSpec("mean", "mean", "output_2", initial=INITIAL))
    return replace(imported, states=tuple(states), position=PositionSpec("position", "tokens"))


class Expected:
    """The model in numpy."""

    def __init__(self, capacity: int) -> None:
        self.cache, self.mean, self.length = np.zeros((2, capacity, 6), "float32"), INITIAL.copy(), 0

    def run(self, rows: Array) -> Array:
        self.cache[:, self.length : self.length + rows.shape[1]] = rows
        self.length += rows.shape[1]
        old, self.mean = self.mean, (self.mean + self.cache.sum(1)) * np.float32(0.5)
        return self.mean + old

    def check(self, session: Session) -> None:
        states = session.states
        np.testing.assert_array_equal(states["cache"][:, : self.length], self.cache[:, : self.length])
        np.testing.assert_allclose(states["mean"], self.mean, rtol=1e-5, atol=1e-5)
        assert session.length == self.length


def rows(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((2, count, 6)).astype("float32")


@pytest.fixture(scope="module")
def module() -> Module:
    return tensorwright.compile(model(), threads=1, verify=True, progress=None)


def walk(session: Session, expected: Expected, counts: list[int], seed: int = 0) -> None:
    for step, count in enumerate(counts):
        given = rows(count, 100 * seed + step)
        got = session.run({"rows": given})
        assert list(got) == ["output_0"]
        np.testing.assert_allclose(got["output_0"], expected.run(given), rtol=1e-4, atol=1e-4)
    expected.check(session)


def test_steps_forks_and_reset(module: Module) -> None:
    session, expected = module.session(capacity=9), Expected(9)
    walk(session, expected, [3, 1, 1])
    other, same = session.fork(), Expected(9)
    same.__dict__.update({name: np.copy(value) for name, value in vars(expected).items()})
    walk(session, expected, [2, 2], seed=1)
    walk(other, same, [1], seed=2)
    expected.check(session)
    session.reset()
    walk(session, Expected(9), [4], seed=3)
    assert (session.capacity, session.length, other.length) == (9, 4, 6)


def test_past_the_capacity_nothing_is_written(module: Module) -> None:
    session, expected = module.session(capacity=4), Expected(4)
    walk(session, expected, [3])
    with pytest.raises(InputError, match="3 of 4 rows are in use, and this run adds 2"):
        session.run({"rows": rows(2)})
    expected.check(session)
    walk(session, expected, [1])


def test_states_are_ordinary_inputs_of_a_run_without_a_session(module: Module) -> None:
    cache, mean = rows(5), INITIAL.copy()
    before = cache.copy()
    outputs = module.run({"cache": cache, "mean": mean, "rows": rows(2, 1), "position": np.array(3)})
    expected = Expected(5)
    expected.cache, expected.length = cache.copy(), 3
    np.testing.assert_allclose(outputs["output_0"], expected.run(rows(2, 1)), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(outputs["output_1"], expected.cache)
    np.testing.assert_array_equal(cache, before)
    np.testing.assert_array_equal(mean, INITIAL)
    with pytest.raises(InputError, match="outside of its capacity"):
        module.run({"cache": cache, "mean": mean, "rows": rows(2), "position": np.array(4)})


def test_saved_states_go_on_elsewhere(module: Module, tmp_path: Path) -> None:
    session, expected = module.session(capacity=6), Expected(8)
    walk(session, expected, [3, 2])
    session.save(tmp_path / "states")
    module.export(tmp_path / "module.twm")
    loaded = tensorwright.load(tmp_path / "module.twm", verify=True)
    other = loaded.session(capacity=8)
    other.load(tmp_path / "states")
    expected.check(other)
    walk(other, expected, [3], seed=1)
    with pytest.raises(InputError, match="holds 5 rows, but the session has a capacity of 4"):
        loaded.session(capacity=4).load(tmp_path / "states")
    content = (tmp_path / "states").read_bytes()
    for broken in (content[:-1], content[:40], content[:90] + b"?" + content[91:], b"", b"TWSTATE1" + bytes(60)):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ArtifactError):
            other.load(tmp_path / "broken")
    expected.check(other)


def test_rows_can_be_taken_back_where_all_states_are_rows(module: Module, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="state 'mean' is replaced by each run"):
        module.session(capacity=4).rewind(0)
    alone = tensorwright.compile(model(with_mean=False), threads=1, progress=None)
    session = alone.session(capacity=5)
    session.run({"rows": rows(5), "mean": INITIAL})
    session.rewind(3)
    session.run({"rows": rows(2, 1), "mean": INITIAL})
    np.testing.assert_array_equal(session.states["cache"][:, :4], np.concatenate([rows(5)[:, :2], rows(2, 1)], 1))
    with pytest.raises(OptionError, match=r"cannot rewind by 5: the session has length 4"):
        session.rewind(5)
    session.save(tmp_path / "states")
    with pytest.raises(ArtifactError, match="another module"):
        module.session(capacity=5).load(tmp_path / "states")


def test_sessions_run_in_threads_at_once(module: Module) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            walk(module.session(capacity=24), Expected(24), [1 + (seed + step) % 3 for step in range(12)], seed)
        except BaseException as error:  # for the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures


def test_what_a_session_refuses(module: Module) -> None:
    with pytest.raises(OptionError, match="dynamic size 'capacity' that must be given"):
        module.session()
    with pytest.raises(OptionError, match="capacity must be a number of rows, not 0"):
        module.session(capacity=0)
    for capacity in (2**49, 2**62, 2**70):
        with pytest.raises(OptionError, match=f"no memory holds {capacity} rows"):
            module.session(capacity=capacity)
    with pytest.raises(OptionError, match=r"no memory for the state '\w+' of shape"):
        module.session(capacity=2**48).run([rows(1)])
    with pytest.raises(OptionError, match="no state has the dimension 'tokens'"):
        module.session(capacity=4, sizes={"tokens": 1})
    session = module.session(capacity=4)
    for inputs, message in [
        ({"rows": rows(1), "mean": INITIAL}, "input 'mean' is kept by the session"),
        ([rows(1), rows(1)], "expected 1 input, got 2"),
        ({"row": rows(1)}, "no input is named 'row'"),
        ({"rows": rows(1)[0]}, "has rank 2"),
    ]:
        with pytest.raises(InputError, match=message):
            session.run(inputs)  # type: ignore[arg-type]
    assert session.length == 0


def test_measuring_begins_where_a_session_does(module: Module) -> None:
    inputs = complete_inputs(module, None)
    assert {name: value.shape for name, value in inputs.items()} == {
        "cache": (2, 2, 6),
        "mean": (2, 6),
        "rows": (2, 2, 6),
        "position": (),
    }
    np.testing.assert_array_equal(inputs["mean"], INITIAL)
    assert as_module(module, threads=1).verify() == module.verify()
    module.run(complete_inputs(module, None, {"tokens": 3, "capacity": 4}))


def test_states_are_updated_in_place_by_the_code_of_each_size(module: Module, tmp_path: Path) -> None:
    sized = tensorwright.compile(model(), sizes={"tokens": [1, 3]}, threads=1, dump=tmp_path, progress=None)
    (updated,) = tmp_path.rglob("*update-states.py")
    assert not [line for line in updated.read_text().splitlines() if "CopyFromTo" in line and ", cache" in line]
    session, other = sized.session(capacity=11), module.session(capacity=11)
    for count in (3, 1, 2, 1, 3):
        got, expected = (each.run({"rows": rows(count, count)}) for each in (session, other))
        np.testing.assert_allclose(got["output_0"], expected["output_0"], rtol=1e-5, atol=1e-5)
        for name, state in session.states.items():
            np.testing.assert_allclose(state, other.states[name], rtol=1e-5, atol=1e-5)
    before = session.states
    with pytest.raises(InputError, match="the session is full: 10 of 11"):
        session.run({"rows": rows(2)})
    for name, state in session.states.items():
        np.testing.assert_array_equal(state, before[name])
