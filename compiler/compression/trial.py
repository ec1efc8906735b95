"""What every technique does around itself: import, compile, and measure what a change costs in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import targets
from compiler.compression.quantization.accuracy import Evaluate, likeness, relative_drop, score
from compiler.compression.quantization.calibration import checked_samples
from compiler.driver import compile as compile_model
from compiler.driver import find_target, model_name
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes, import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.statistics import median
from compiler.reference import random_inputs
from compiler.runtime import Module

Sample = Mapping[str, np.ndarray]
Progress = Callable[[str], None]
_TIMED_RUNS = 15


@dataclass
class Trial:
    """One model, the measure of it, and how good it was before anything was done.

    Attributes:
        model: canonicalized.
        before: what the measure says of it.
        max_drop: how much of that may be lost, as a share.
        evaluations: how many candidates were measured.
    """

    name: str
    model: ImportedModel
    target: targets.Target
    threads: int | None
    measure: Evaluate
    before: float
    max_drop: float
    module: Module
    report: Progress
    sample: Sample
    evaluations: int = 0
    scores: list[float] = field(default_factory=list)

    def compiled(self, candidate: ImportedModel) -> Module:
        return compile_model(candidate, self.target, threads=self.threads, reference_inputs=self.sample)

    def score(self, candidate: ImportedModel) -> float:
        """What the measure says of a candidate."""
        self.evaluations += 1
        self.scores.append(score(self.measure, self.compiled(candidate).run))
        return self.scores[-1]

    def holds(self, after: float) -> bool:
        return relative_drop(self.before, after) <= self.max_drop

    def drop(self, after: float) -> float:
        return relative_drop(self.before, after)

    def refuse(self, what: str) -> AccuracyError:
        """The error for a limit that does not hold."""
        return AccuracyError(
            f"the limit max_drop={self.max_drop} does not hold {what}: {self.before:.6g} before, at best"
            f" {max(self.scores):.6g}",
            "allow a larger max_drop, or ask for less",
        )


def begin(
    source: object,
    calibration: Iterable[Sample] | None,
    *,
    evaluate: Evaluate | None,
    max_drop: float,
    target: str | targets.Target,
    shapes: Shapes | None,
    constants: Constants | None,
    example_inputs: Sequence[Any] | None,
    dynamic_shapes: Any,
    threads: int | None,
    progress: Progress | None,
) -> Trial:
    """Import and canonicalize a model, compile it and measure it.

    Raises:
        OptionError: neither `calibration` nor `evaluate`, or a limit that is no share.
        UserError: of importing and compiling.
    """
    report = progress if progress is not None else _silent
    if evaluate is None and calibration is None:
        raise OptionError(
            "neither calibration= nor evaluate= is given, so accuracy can not be measured",
            "give some inputs as the model will meet them, or a measure of your own",
        )
    if not 0 <= max_drop < 1:
        raise OptionError(f"max_drop={max_drop}", "give a share of 0 up to 1, like 0.01")
    chosen = find_target(target, threads)
    report("import")
    imported = import_model(
        source, shapes=shapes, constants=constants, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes
    )
    context = PipelineContext(target=chosen, machine=chosen.machine, options={"checks": imported.checks})
    model = replace(imported, mod=run_pipeline(imported.mod, context, until="canonicalize").mod)
    samples = checked_samples(calibration, model) if calibration is not None else []
    sample = samples[0] if samples else random_inputs(model.inputs)
    report("compile")
    module = compile_model(imported, chosen, threads=threads, reference_inputs=sample)
    measure = evaluate if evaluate is not None else likeness(samples, [module.run(each) for each in samples])
    before = score(measure, module.run)
    return Trial(model_name(source), model, chosen, threads, measure, before, max_drop, module, report, sample)


def seconds(module: Module, sample: Sample) -> float:
    """The median time of a run."""
    import time

    module.run(sample)
    times = []
    for _ in range(_TIMED_RUNS):
        start = time.perf_counter()
        module.run(sample)
        times.append(time.perf_counter() - start)
    return median(times)


def _silent(_: str) -> None:
    return None
