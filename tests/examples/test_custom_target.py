"""The example of a target of one's own: installed as a package, found by name, passing the suite, used for real."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler
import targets
from compiler.device.bundle import write_bundle
from compiler.driver.conformance import check_target
from compiler.errors import OptionError
from targets.conformance.models import operator_model, random_inputs, small_net
from targets.conformance.suite import checks

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_target"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example, installed by pip into a folder that is then searched."""
    source = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("source") / "custom_target")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--target", str(folder), str(source)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def partition_of(module: compiler.Module) -> Any:
    return module.manifest.target.details["partition"]


def test_it_is_under_250_lines() -> None:
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*.py")) < 250


def test_it_is_found_by_name() -> None:
    assert "matrix-engine" in targets.names()
    target = targets.get("matrix-engine")
    assert (target.device, target.how_it_runs()) == ("matrix engine", "in its functional simulator")


# The engine multiplies float32; other kernels of float16, and convolutions, are the host's, which has its own tests.
_CHECKS = [
    check.name
    for check in checks()
    if "conv" not in check.name and ("float16" not in check.name or check.name.startswith("products"))
]


@pytest.mark.parametrize("check", _CHECKS)
def test_it_passes_the_suite(check: str) -> None:
    (outcome,) = check_target("matrix-engine", check)
    assert outcome.problem is None, outcome.problem


def test_products_run_on_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator: Any = __import__("matrix_engine.simulator", fromlist=["execute"])
    programs = []
    execute = simulator.execute

    def counted(program: Any, *operands: Any) -> Any:
        programs.append(len(program))
        return execute(program, *operands)

    monkeypatch.setattr(simulator, "execute", counted)
    model = small_net(1)
    module = compiler.compile(model, "matrix-engine", records=False)
    programs.clear()
    module.run(random_inputs(model))
    assert len(programs) == 2
    report = partition_of(module)
    assert report["claimed"] == ["matmul 1x16x32 + bias + relu", "matmul 1x32x10 + bias"]


def test_what_is_left_has_a_reason() -> None:
    model = operator_model("products", "float32")
    assert model is not None
    report = partition_of(compiler.compile(model, "matrix-engine", records=False))
    assert report["claimed"]
    assert report["refused"] == [{"operator": "matmul", "reason": "its second operand is not a constant"}]


@settings(max_examples=11, deadline=None)
@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 20), st.booleans(), st.booleans())
def test_programs_compute_products(rows: int, depth: int, columns: int, bias: bool, relu: bool) -> None:
    commands: Any = __import__("matrix_engine.commands", fromlist=["product"])
    simulator: Any = __import__("matrix_engine.simulator", fromlist=["execute"])
    rng = np.random.default_rng(rows * 1000 + depth)
    x, weight = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, depth), (depth, columns)))
    added = rng.normal(size=columns).astype(np.float32) if bias else np.zeros(columns, np.float32)
    program = commands.product(rows, depth, columns, bias=bias, relu=relu)
    assert len(program) <= commands.length(rows, depth, columns)
    expected = x.astype(np.float64) @ weight + added
    expected = np.maximum(expected, 0) if relu else expected
    np.testing.assert_allclose(simulator.execute(program, x, weight, added), expected, rtol=1e-5, atol=1e-5)


def test_a_module_needs_its_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compiler.runtime import device

    path = tmp_path / "net.twm"
    compiler.compile(small_net(1), "matrix-engine", records=False).export(path)
    monkeypatch.setattr(device, "_known", set())
    monkeypatch.setattr("targets.registry._foreign", dict)
    with pytest.raises(compiler.errors.IncompatibleArtifactError, match="matrix-engine"):
        compiler.load(path)


def test_a_bundle_without_python_is_refused(tmp_path: Path) -> None:
    target = targets.get("matrix-engine")
    module = compiler.compile(small_net(1), target, threads=1)
    with pytest.raises(OptionError, match=r"calls the accelerator of target 'matrix-engine'.*no Python"):
        write_bundle(module.artifact, target, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
