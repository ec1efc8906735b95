"""What every technique does around its own work: import, compile, measure, and hold the caller's limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import targets
from compiler.compression.canonical import canonical
from compiler.compression.model import CompressedModel
from compiler.compression.quantization.accuracy import Evaluate, check_max_drop, likeness, relative_drop, score
from compiler.compression.quantization.calibration import checked_samples
from compiler.compression.report import CompressionReport, LayerChange, Measure
from compiler.compression.timing import reported_seconds
from compiler.driver.compile import compile as compile_model
from compiler.driver.compile import find_target, model_name
from compiler.errors import AccuracyError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes, import_model
from compiler.passes.rewriting.matching import Array
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs

Samples = Iterable[Mapping[str, np.ndarray]]


@dataclass
class Job:
    """One technique at work on one model.

    Attributes:
        model: canonical: batch norms folded, constants computed.
        samples: the calibration, checked; empty where none was given.
        before: of `model`.
    """

    name: str
    model: ImportedModel
    target: targets.Target
    threads: int | None
    samples: list[dict[str, Array]]
    evaluate: Evaluate | None
    max_drop: float
    report: Callable[[str], None]
    before: Measure = field(default_factory=lambda: Measure(None, 0, 0.0))

    def compile(self, candidate: ImportedModel) -> Module:
        """Compile a version of the model."""
        names = {spec.name for spec in candidate.inputs}
        known = self.samples[0] if self.samples and names == set(self.samples[0]) else None
        return compile_model(candidate, self.target, threads=self.threads, reference_inputs=known)

    def measure(self, candidate: ImportedModel) -> Measure:
        """Compile, score and time."""
        module = self.compile(candidate)
        value = None if self.evaluate is None else score(self.evaluate, module.run)
        size = sum(parameter.nbytes for parameter in module.manifest.parameters)
        kernels = Counter(kernel.rule for kernel in module.manifest.kernels)
        return Measure(value, size, self._seconds(module), dict(kernels))

    def _seconds(self, module: Module) -> float:
        inputs = self.samples[0] if self.samples else random_inputs(self.model.inputs, indices=self.model.indices)
        return reported_seconds(lambda: module.run(inputs), threads=module.threads)

    @property
    def measured(self) -> tuple[object, ...]:
        """By what a model is measured: equal where measures can be compared."""
        return (self.evaluate, self.target.name, self.threads)

    def drop(self, after: Measure) -> float | None:
        if self.before.score is None or after.score is None:
            return None
        return relative_drop(self.before.score, after.score)

    def holds(self, after: Measure) -> bool:
        """Whether the limit does, as far as that was measured."""
        drop = self.drop(after)
        return drop is None or drop <= self.max_drop

    def require(self, after: Measure, advice: str) -> None:
        """Raises AccuracyError where the limit does not hold."""
        if not self.holds(after):
            raise AccuracyError(
                f"the limit max_drop={self.max_drop} does not hold: {self.before.score:.6g} before,"
                f" {after.score:.6g} after",
                advice,
            )

    def result(
        self,
        technique: str,
        candidate: ImportedModel,
        after: Measure,
        settings: Mapping[str, Any],
        layers: Sequence[LayerChange] = (),
        notes: Sequence[str] = (),
        trained: Any = None,
    ) -> CompressedModel:
        """The model with its report."""
        report = CompressionReport(
            technique,
            self.target.name,
            dict(settings),
            self.before,
            after,
            self.drop(after),
            self.max_drop,
            tuple(layers),
            tuple(notes),
        )
        fields = {name: getattr(candidate, name) for name in ImportedModel.__dataclass_fields__}
        return CompressedModel(**fields, name=self.name, report=report, trained=trained, measured=self.measured)


def start(
    source: object,
    *,
    target: str | targets.Target,
    threads: int | None,
    calibration: Samples | None,
    evaluate: Evaluate | None,
    max_drop: float,
    progress: Callable[[str], None] | None,
    options: Mapping[str, Any],
) -> Job:
    """Import the model and measure it.

    Raises:
        OptionError, InputError: an option or the calibration is at fault.
        UserError: of importing and compiling.
    """
    check_max_drop(max_drop)
    report = progress if progress is not None else _silent
    chosen = find_target(target, threads)
    report("import")
    imported = import_model(source, **options)
    for note in imported.notes:
        report(note)
    model = canonical(imported, chosen)
    samples = [] if calibration is None else checked_samples(calibration, model)
    name = getattr(source, "name", None) if isinstance(source, CompressedModel) else model_name(source)
    job = Job(str(name), model, chosen, threads, samples, evaluate, max_drop, report)
    report("measure")
    if evaluate is None and samples:
        module = job.compile(model)
        job.evaluate = likeness(samples, [dict(module.run(sample)) for sample in samples])
    known = isinstance(source, CompressedModel) and source.measured == job.measured
    job.before = source.report.after if known else job.measure(model)  # type: ignore[attr-defined]
    return job


def import_options(
    shapes: Shapes | None, constants: Constants | None, example_inputs: Sequence[Any] | None, dynamic_shapes: Any
) -> dict[str, Any]:
    """Those of the options of `import_model` that were given, by name."""
    given = {
        "shapes": shapes,
        "constants": constants,
        "example_inputs": example_inputs,
        "dynamic_shapes": dynamic_shapes,
    }
    return {name: value for name, value in given.items() if value is not None}


def _silent(_: str) -> None:
    return None
