"""The named checks that every target must pass, built-in or third-party.

A check compiles a small ONNX model for the target, runs it the way the target runs here (natively, emulated or
simulated), and compares with the reference evaluator of the `onnx` package. The compiler itself is passed in
(`SuiteCompiler`), since this package must not import it.

    tensorwright targets check NAME
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from targets.conformance.models import (
    DTYPES,
    FAMILIES,
    encoder,
    operator_model,
    quantized_functions,
    quantized_net,
    random_inputs,
    small_net,
    streaming_net,
    unknown_operator,
)
from targets.errors import TargetError
from targets.target import Target

Array = np.ndarray
# Relative to the largest value of an output: sums of up to a few hundred products in the type's own precision.
_ROUNDED_STEPS = 2
TOLERANCES = {"float32": 1e-5, "float16": 4e-3}


class Runnable(Protocol):
    """A compiled module, as used by the suite."""

    @property
    def manifest(self) -> Any:
        """Its manifest."""

    def run(self, inputs: Mapping[str, object], /) -> dict[str, Any]:
        """The outputs by name."""

    def session(self) -> Any:
        """Session that keeps the module's states: its `run` takes and returns only the tensors that are not states;
        `states` holds these by name."""

    def export(self, path: str | Path, /) -> None:
        """Write it to a file."""


class SuiteCompiler(Protocol):
    """The compiler functions that the suite needs."""

    def compile(self, model: onnx.ModelProto, target: Target) -> Runnable:
        """Build a model."""

    def reload(self, path: Path, target: Target) -> Runnable:
        """A module from a file, ready to run the way modules of this target run here."""

    def refusal(self, error: Exception) -> str | None:
        """The reason that a user-facing error gives; None if the error is a defect, not a refusal."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check; `problem` is None if it passed."""

    check: str
    problem: str | None
    seconds: float


@dataclass(frozen=True)
class Check:
    """A named check; `run` returns what is wrong, or None."""

    name: str
    run: Callable[[Target, SuiteCompiler], str | None]


def checks() -> list[Check]:
    """The suite, in execution order."""
    model_checks = [
        Check(f"{family} {dtype}", _operators(family, dtype))
        for family in FAMILIES
        for dtype in DTYPES
        if operator_model(family, dtype) is not None
    ]
    return [
        Check("description", _description),
        *model_checks,
        Check("small net", _small_net),
        Check("encoder", _encoder),
        Check("quantized net", _quantized_net),
        Check("quantized functions", _quantized_functions),
        Check("dynamic batch", _open_batch),
        Check("dynamic length", _open_length),
        Check("states", _states),
        Check("file round trip", _round_trip),
        Check("refusal", _refusal),
        Check("partition", _partition),
    ]


def run_suite(target: Target, compiler: SuiteCompiler, only: str | None = None) -> Iterator[Outcome]:
    """Run the checks one after the other; a failure does not stop the others.

    `only` is the name of one check, or a substring of the names to run.
    """
    named = [check for check in checks() if check.name == only]
    for check in named or checks():
        if only is not None and only not in check.name:
            continue
        start = time.perf_counter()
        try:
            problem = check.run(target, compiler)
        except TargetError as error:
            problem = f"{error.message}; {error.hint}" if error.hint else error.message
        except Exception as error:  # any exception is a failure
            problem = f"{type(error).__name__}: {error}"
        yield Outcome(check.name, problem, time.perf_counter() - start)


def _description(target: Target, _: SuiteCompiler) -> str | None:
    """Check that the machine is described, by plain data."""
    import json

    described = target.describe()
    json.dumps(described)
    for name in ("name", "description"):
        if not str(getattr(target, name, "")).strip():
            return f"the target has no {name}"
    if described["architecture"] != target.machine.architecture:
        return "the manifest's architecture is not the machine's"
    if not set(target.required_features) <= set(target.machine.features):
        return "required features that the machine does not have"
    return None if target.how_it_runs() else "the target does not describe how it runs"


def _operators(family: str, dtype: str) -> Callable[[Target, SuiteCompiler], str | None]:
    def run(target: Target, compiler: SuiteCompiler) -> str | None:
        model = operator_model(family, dtype)
        assert model is not None
        return _compare(model, target, compiler, TOLERANCES.get(dtype, 0.0))

    return run


def _compare(model: onnx.ModelProto, target: Target, compiler: SuiteCompiler, tolerance: float) -> str | None:
    inputs = random_inputs(model)
    module = compiler.compile(model, target)
    return differences(_reference(model, inputs), module.run(inputs), tolerance)


def _reference(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, dict(inputs)), strict=True))


def differences(expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: float) -> str | None:
    """Names of outputs that differ by more than `tolerance` of their largest value; None if none does."""
    wrong = []
    for name, reference in expected.items():
        got = np.asarray(actual[name])
        if got.shape != reference.shape or got.dtype != reference.dtype:
            wrong.append(f"{name} is {got.dtype}{list(got.shape)}, not {reference.dtype}{list(reference.shape)}")
            continue
        wide = reference.astype(np.float64)
        error = np.abs(got.astype(np.float64) - wide).max(initial=0.0)
        if not error <= tolerance * max(1.0, np.abs(wide).max(initial=0.0)):
            wrong.append(f"{name} differs by {error:.3g}")
    return "; ".join(wrong) or None


def _small_net(target: Target, compiler: SuiteCompiler) -> str | None:
    return _compare(small_net(2), target, compiler, TOLERANCES["float32"])


def _quantized_net(target: Target, compiler: SuiteCompiler) -> str | None:
    """Compare integer results: ties and intermediate rounding may differ by two steps, after ten roundings."""
    model, step = quantized_net()
    inputs = random_inputs(model)
    (expected,), (actual,) = _reference(model, inputs).values(), compiler.compile(model, target).run(inputs).values()
    if np.ptp(expected) < 20 * step:
        return "the check is meaningless: the reference result is nearly constant"
    error = float(np.abs(np.asarray(actual, np.float64) - expected).max())
    return None if error <= _ROUNDED_STEPS * step * 1.001 else f"it differs by {error / step:.3g} steps"


def _quantized_functions(target: Target, compiler: SuiteCompiler) -> str | None:
    """Compare results that are rounded at most three times: a step of the sums moves any function by less than two."""
    model, step = quantized_functions()
    inputs = random_inputs(model)
    actual = compiler.compile(model, target).run(inputs)
    wrong = []
    for name, expected in _reference(model, inputs).items():
        if np.ptp(expected) < 10 * step:
            return f"the check is meaningless: {name} is nearly constant in the reference"
        error = float(np.abs(np.asarray(actual[name], np.float64) - expected).max())
        if not error <= _ROUNDED_STEPS * step * 1.001:
            wrong.append(f"{name} differs by {error / step:.3g} steps")
    return "; ".join(wrong) or None


def _encoder(target: Target, compiler: SuiteCompiler) -> str | None:
    return _compare(encoder(2, 11), target, compiler, TOLERANCES["float32"])


def _open_batch(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check one module for every batch size."""
    module = compiler.compile(small_net("batch"), target)
    return _first_difference(module, {f"batch {batch}": small_net(batch) for batch in (1, 3)})


def _open_length(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check one module for every batch and length."""
    module = compiler.compile(encoder("batch", "length"), target)
    sizes = ((1, 1), (3, 7), (2, 33))
    return _first_difference(module, {f"{batch} x {length}": encoder(batch, length) for batch, length in sizes})


def _first_difference(module: Runnable, models: Mapping[str, onnx.ModelProto]) -> str | None:
    """First difference between a module of dynamic sizes and models of fixed ones, given by name."""
    for name, model in models.items():
        inputs = random_inputs(model)
        problem = differences(_reference(model, inputs), module.run(inputs), TOLERANCES["float32"])
        if problem:
            return f"{name}: {problem}"
    return None


def _states(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check that a session continues from its last run, and that a fork of it is independent."""
    model = streaming_net()
    session = compiler.compile(model, target).session()
    inputs = random_inputs(model)
    states = {"cache": np.zeros_like(inputs["cache"]), "h": np.zeros_like(inputs["h"])}
    walks = [(session, states)]
    for step in range(3):
        if step == 1:
            walks.append((session.fork(), dict(states)))
        for number, (module, state) in enumerate(walks):
            feeds = {"x": inputs["x"] + step - number, "at": np.array([[2 * step + number]])}
            expected = _reference(model, {**feeds, **state})
            state.update(cache=expected.pop("new_cache"), h=expected.pop("hn"))
            problem = differences(expected, module.run(feeds), TOLERANCES["float32"])
            problem = problem or differences(state, module.states, TOLERANCES["float32"])
            if problem:
                return f"run {step} of session {number}: {problem}"
    return None


def _round_trip(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check that a module reloaded from a file returns the same numbers."""
    model = small_net(1)
    inputs = random_inputs(model)
    module = compiler.compile(model, target)
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        path = Path(folder) / "net.twm"
        module.export(path)
        loaded = compiler.reload(path, target)
        if loaded.manifest.target.name != target.name:
            return f"the file says it is for {loaded.manifest.target.name!r}"
        before, after = module.run(inputs), loaded.run(inputs)
    return differences(before, after, 0.0)


def _refusal(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check that an unsupported model is refused with a reason that names the operator."""
    try:
        compiler.compile(unknown_operator(), target)
    except Exception as error:
        reason = compiler.refusal(error)
        if reason is None:
            return f"an internal error instead of a refusal: {type(error).__name__}: {error}"
        return None if "Mystery" in reason else f"the refusal does not name the operator: {reason}"
    return "an unknown operator was compiled without an error"


def _partition(target: Target, compiler: SuiteCompiler) -> str | None:
    """Check that an accelerator claims part of the small net, and gives a reason for the rest."""
    if not target.partition_passes():
        return None
    model = quantized_net()[0] if target.quantized_everywhere else small_net(1)
    details = compiler.compile(model, target).manifest.target.details
    report = details.get("partition")
    if not isinstance(report, Mapping) or not {"claimed", "refused"} <= set(report):
        return "the partition passes report nothing: context.report.partition = {'claimed': [...], 'refused': [...]}"
    if not report["claimed"]:
        return f"nothing of {model.graph.name} was claimed"
    without = [entry for entry in report["refused"] if not (entry.get("operator") and entry.get("reason"))]
    return f"refused without a reason: {without}" if without else None
