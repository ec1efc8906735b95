"""The suite that every target passes, on the targets that run here; and that it can fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import targets
from compiler.driver.conformance import _SuiteCompiler, check_target
from targets.conformance.suite import checks, differences, run_suite
from tests.compiler.device.emulators import target_that_runs


@pytest.mark.parametrize("check", [check.name for check in checks()])
@pytest.mark.parametrize("name", ["host", "raspberry-pi-5"])
def test_target(name: str, check: str) -> None:
    target = target_that_runs(name, programs=False)
    (outcome,) = check_target(target, check)
    assert outcome.check == check
    assert outcome.problem is None, outcome.problem


class _Wrong(_SuiteCompiler):
    """A compiler whose modules are off by a little."""

    def compile(self, model: Any, target: targets.Target) -> Any:
        module = super().compile(model, target)

        class Off:
            manifest = module.manifest

            def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
                return {name: value + value.dtype.type(1) for name, value in module.run(inputs).items()}

            def export(self, path: Path) -> None:
                module.export(path)

        return Off()


def test_wrong_numbers_fail() -> None:
    outcomes = list(run_suite(targets.get("host", cores=1), _Wrong(), "pooling"))
    assert outcomes
    assert all(outcome.problem and "differs by" in outcome.problem for outcome in outcomes)


def test_differences_are_relative_to_the_largest_value() -> None:
    expected = {"y": np.array([1000.0, 0.0], np.float32)}
    assert differences(expected, {"y": np.array([1000.0, 0.005], np.float32)}, 1e-5) is None
    assert differences(expected, {"y": np.array([1000.0, 0.02], np.float32)}, 1e-5) is not None
    assert differences(expected, {"y": np.array([1000.0, 0.0])}, 1.0) is not None
