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
from tests.compiler.frontends.onnx.test_states import decoder
from tests.compiler.runtime.test_session import model, rows


def run(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    runner = device_programs(targets.get("host")) / "tensorwright-run"
    return subprocess.run(
        [runner, folder / "module.twm", *map(str, options)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("grows", [False, True], ids=["capacity", "grows"])
def test_the_runner_and_python_take_turns(grows: bool, tmp_path: Path) -> None:
    module = tensorwright.compile(decoder() if grows else model(), threads=1, progress=None)
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
