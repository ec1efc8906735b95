"""Sessions in C++: steps of the runner, and of Python, on one file of states."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import targets
import tensorwright
from compiler.artifact.tensors import Blob
from compiler.device.programs import device_programs
from tests.compiler.device.c_library import CallError, CModule
from tests.compiler.frontends.onnx.test_states import decoder
from tests.compiler.runtime.test_session import Expected, model, rows


def run(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    runner = device_programs(targets.get("host")) / "tensorwright-run"
    return subprocess.run(
        [runner, folder / "module.twm", *map(str, options)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("grows", "capacity"), [(False, None), (True, None), (True, "most")], ids=["capacity", "grows", "appends"]
)
def test_the_runner_and_python_take_turns(grows: bool, capacity: str | None, tmp_path: Path) -> None:
    module = tensorwright.compile(decoder() if grows else model(), threads=1, progress=None, capacity=capacity)
    module.export(tmp_path / "module.twm")
    session, states = module.session(capacity=9), tmp_path / "states"
    session.save(states)
    for step, count in enumerate((3, 2, 4)):
        x = np.random.default_rng(step).standard_normal((2, 2, count, 4)).astype("float32")
        given = {"x": x} if grows else {"rows": rows(count, step)}
        (tmp_path / "inputs").write_bytes(b"".join(map(bytes, Blob(given).pieces)))
        files = ["--inputs", tmp_path / "inputs", "--load-states", states, "--save-states", states]
        done = run(tmp_path, "--session", "--capacity", 9, *files, "--outputs", tmp_path / "outputs")
        assert done.returncode == 0, done.stderr
        (expected,) = session.run(given).values()
        got = np.frombuffer((tmp_path / "outputs").read_bytes()[-expected.nbytes :], "float32")
        np.testing.assert_allclose(got.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
        other = module.session(capacity=9)
        other.load(states)
        assert other.length == session.length
        for name, value in session.states.items():
            np.testing.assert_allclose(other.states[name], value, rtol=1e-5, atol=1e-5)
    done = run(tmp_path, "--session", "--capacity", 9, *files)
    assert done.returncode == 1
    assert "the session is full: 9 of 9 rows are in use" in done.stderr
    assert run(tmp_path, "--verify").returncode == 0


def test_a_damaged_file_of_states_is_refused(tmp_path: Path) -> None:
    module = tensorwright.compile(model(), threads=1, progress=None)
    module.export(tmp_path / "module.twm")
    session = module.session(capacity=4)
    session.run({"rows": rows(2)})
    session.save(tmp_path / "whole")
    content = (tmp_path / "whole").read_bytes()
    for broken in (content[:-1], content[:40], content[:90] + b"?" + content[91:], b""):
        (tmp_path / "broken").write_bytes(broken)
        done = run(tmp_path, "--session", "--capacity", 4, "--load-states", tmp_path / "broken")
        assert (done.returncode, "broken" in done.stderr) == (1, True)


def test_sessions_of_the_c_api_do_what_python_does(tmp_path: Path) -> None:
    module = tensorwright.compile(model(), threads=1, progress=None)
    module.export(tmp_path / "module.twm")
    loaded = CModule(tmp_path / "module.twm")
    with pytest.raises(CallError, match="dynamic size 'capacity' that must be given"):
        loaded.session(0)
    session, expected = loaded.session(9), Expected(9)
    assert session.names() == (["rows"], ["output_0"])
    for step, count in enumerate((3, 2)):
        given = rows(count, step)
        np.testing.assert_allclose(session.run({"rows": given})[0], expected.run(given), rtol=1e-5, atol=1e-5)
        assert session.length == expected.length
    # A fork goes its own way; the session is at the same place afterwards.
    fork, other = session.fork(), rows(4, 9)
    session.save(tmp_path / "saved")
    first = fork.run({"rows": other})[0]
    assert (fork.length, session.length) == (9, 5)
    with pytest.raises(CallError, match="the session is full: 9 of 9 rows are in use, and this run adds 1"):
        fork.run({"rows": rows(1)})
    np.testing.assert_array_equal(session.run({"rows": other})[0], first)
    # Saved states are those of both runtimes.
    python = module.session(capacity=9)
    python.load(tmp_path / "saved")
    np.testing.assert_allclose(python.run({"rows": other})["output_0"], first, rtol=1e-5, atol=1e-5)
    session.load(tmp_path / "saved")
    assert session.length == 5
    np.testing.assert_array_equal(session.run({"rows": other})[0], first)
    with pytest.raises(CallError, match="cannot be rewound: state 'mean' is replaced by each run"):
        session.rewind(1)
    session.reset()
    assert session.length == 0
    np.testing.assert_allclose(session.run({"rows": other})[0], Expected(9).run(other), rtol=1e-5, atol=1e-5)
    for each in (session, fork):
        each.free()
    loaded.free()


def test_a_session_of_the_c_api_is_rewound(tmp_path: Path) -> None:
    module = tensorwright.compile(model(with_mean=False), threads=1, progress=None)
    module.export(tmp_path / "module.twm")
    loaded = CModule(tmp_path / "module.twm")
    session, mean = loaded.session(9), np.zeros((2, 6), np.float32)
    first = session.run({"mean": mean, "rows": rows(3)})
    session.rewind(2)
    assert session.length == 1
    again = session.run({"mean": mean, "rows": rows(3)[:, 1:]})
    for one, other in zip(first, again, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    with pytest.raises(CallError, match="cannot rewind by 4: the session has length 3"):
        session.rewind(4)
    session.free()
    loaded.free()
