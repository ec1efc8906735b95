"""The conformance suite in `targets`, run with this compiler."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from compiler.artifact import read_artifact
from compiler.driver.build import foreign_module
from compiler.driver.compile import compile, find_target
from compiler.errors import UserError
from compiler.runtime import Module
from compiler.support.cache import conformance_file
from targets import Target
from targets.conformance.suite import Outcome, run_suite


class _SuiteCompiler:
    """Compiles and loads modules for the suite, and distinguishes refusals from defects."""

    def compile(self, model: onnx.ModelProto, target: Target) -> Module:
        return compile(model, target, threads=1, records=False, progress=None)

    def reload(self, path: Path, target: Target) -> Module:
        artifact = read_artifact(path)
        return Module(artifact) if target.fits_this_machine() else foreign_module(artifact, target)

    def refusal(self, error: Exception) -> str | None:
        return error.message if isinstance(error, UserError) else None


def check_target(target: str | Target, only: str | None = None) -> Iterator[Outcome]:
    """Run the suite on a target and yield outcomes as the checks end. Raises UnknownTargetError for an unknown target.
    `only`: run the check with this name, or else the checks whose names contain this text."""
    return run_suite(find_target(target, 1), _SuiteCompiler(), only)


def keep_outcomes(target: str, outcomes: Sequence[Outcome]) -> None:
    """Store a target's outcomes for `tensorwright targets`."""
    path = conformance_file(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    passed = sum(outcome.problem is None for outcome in outcomes)
    path.write_text(json.dumps({"passed": passed, "checks": len(outcomes)}), encoding="utf-8")
