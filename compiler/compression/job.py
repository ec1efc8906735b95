"""Common part of all techniques: import, compile, measure, and enforce the caller's limit.

Also checks the caller's samples: representative inputs of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

import targets
from compiler.artifact.language_model import DESCRIPTION_ASSET
from compiler.compression.model import CompressedModel, canonical
from compiler.compression.report import CompressionReport, LayerChange, Measure
from compiler.driver.compile import compile as compile_model
from compiler.driver.compile import find_target, model_name
from compiler.errors import AccuracyError, InputError, OptionError, UserError, type_text
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.frontends.state_capacity import with_capacity
from compiler.passes.rewriting.matching import Array
from compiler.profiling.timing import reported_seconds
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs
from compiler.support.accuracy import Evaluate, check_max_drop, likeness, relative_drop, score
from compiler.support.progress_bar import silent

Model = TypeVar("Model", bound=ImportedModel)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options common to all techniques; `tensorwright.prune` documents them."""

    target: str | targets.Target = "host"
    threads: int | None = None
    calibration: Samples | None = None
    evaluate: Evaluate | None = None
    max_drop: float = 0.01
    progress: Callable[[str], None] | None = None

    @property
    def report(self) -> Callable[[str], None]:
        """Receives the name of each step."""
        return self.progress if self.progress is not None else silent


@dataclass
class Job:
    """One technique applied to one model.

    Attributes:
        model: in canonical form: batch norms folded, constants computed.
        samples: the checked calibration; empty if there is none.
        imports: import options of the source, without the capacity of its states, which only results get: samples and
            measures are of models without it.
        before: measure of `model`.
    """

    name: str
    model: ImportedModel
    target: targets.Target
    threads: int | None
    samples: list[dict[str, Array]]
    evaluate: Evaluate | None
    max_drop: float
    report: Callable[[str], None]
    imports: ImportOptions = field(default_factory=ImportOptions)
    capacity: int | str | None = None
    before: Measure = field(default_factory=lambda: Measure(None, 0, 0.0))

    def example(self) -> dict[str, Array]:
        """The first sample, or random inputs if there is none."""
        model = self.model
        return next(iter(self.samples), None) or random_inputs(
            model.inputs, indices=model.indices, relations=model.requirements
        )

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
        inputs = self.example()
        return reported_seconds(lambda: module.run(inputs), threads=module.threads)

    @property
    def measured(self) -> tuple[object, ...]:
        """Settings that a measure depends on: measures are comparable if these are equal."""
        return (self.evaluate, self.target.name, self.threads)

    def drop(self, after: Measure) -> float | None:
        if self.before.score is None or after.score is None:
            return None
        return relative_drop(self.before.score, after.score)

    def holds(self, after: Measure) -> bool:
        """True if the limit holds, or nothing was measured."""
        drop = self.drop(after)
        return drop is None or drop <= self.max_drop

    def require(self, after: Measure, advice: str) -> None:
        """Raise AccuracyError if the limit does not hold."""
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
        settings: Mapping[str, object],
        layers: Sequence[LayerChange] = (),
        notes: Sequence[str] = (),
        trained: object = None,
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
        return self.finished(
            CompressedModel(**fields, name=self.name, report=report, trained=trained, measured=self.measured)
        )

    def finished(self, model: Model) -> Model:
        """A result with the capacity of its states, if one was requested."""
        return model if self.capacity is None else with_capacity(model, self.capacity)


def import_job(source: object, options: JobOptions, imports: ImportOptions) -> Job:
    """Import the model; nothing is measured yet. Raises OptionError or InputError if an option or the calibration is
    invalid, and UserError if importing failed."""
    check_max_drop(options.max_drop)
    report = options.report
    chosen = find_target(options.target, options.threads)
    report("import")
    uncapped = replace(imports, capacity=None)
    imported = uncapped.load(source)
    if DESCRIPTION_ASSET in imported.assets:
        raise OptionError(
            f"{model_name(source)} is a language model, whose weights are rounded as it is compiled",
            "compile it with precision= (`tensorwright compile MODEL --precision int8`)",
        )
    if imports.capacity is not None:
        with_capacity(imported, imports.capacity)  # raises errors now instead of at the end
    for note in imported.notes:
        report(note)
    model = canonical(imported, chosen)
    samples = [] if options.calibration is None else checked_samples(options.calibration, model)
    name = source.name if isinstance(source, CompressedModel) else model_name(source)
    return Job(
        name,
        model,
        chosen,
        options.threads,
        samples,
        options.evaluate,
        options.max_drop,
        report,
        uncapped,
        imports.capacity,
    )


def start(source: object, options: JobOptions, imports: ImportOptions) -> Job:
    """Import the model and measure it. Raises as `import_job`, and UserError if compiling fails."""
    job = import_job(source, options, imports)
    job.report("measure")
    if job.evaluate is None and job.samples:
        module = job.compile(job.model)
        job.evaluate = likeness(job.samples, [dict(module.run(sample)) for sample in job.samples])
    known = isinstance(source, CompressedModel) and source.measured == job.measured
    job.before = source.report.after if known else job.measure(job.model)  # type: ignore[attr-defined]
    return job


Sample = Mapping[str, np.ndarray]
Samples = Iterable[Sample]
_WANTED = "give a sequence of {input name: array}, or something that yields them"


def checked_samples(calibration: Samples, model: ImportedModel) -> list[dict[str, np.ndarray]]:
    """The samples as dictionaries of arrays of all inputs.

    Raises:
        OptionError: there are none, or iterating over them fails.
        InputError: one lacks an input, has an unknown one, or contains NaN.
    """
    if isinstance(calibration, Mapping | str | np.ndarray) or not isinstance(calibration, Iterable):
        raise OptionError(f"calibration= is {type_text(calibration)}", _WANTED)
    names = {spec.name for spec in model.inputs}
    try:
        samples = [_checked_sample(sample, f"calibration[{index}]", names) for index, sample in enumerate(calibration)]
    except UserError:
        raise
    except Exception as error:
        raise OptionError(f"calibration= raised {type(error).__name__}: {error}", _WANTED) from error
    if not samples:
        raise OptionError("calibration= holds no samples", "give some representative inputs of the model")
    return samples


def _form(names: set[str]) -> str:
    return "{" + ", ".join(f"{name!r}: array" for name in sorted(names)) + "}"


def _checked_sample(sample: Sample, where: str, names: set[str]) -> dict[str, np.ndarray]:
    if not isinstance(sample, Mapping):
        raise OptionError(f"{where} is {type_text(sample)}", f"give a dict by input name: {_form(names)}")
    missing, unknown = sorted(names - set(sample)), sorted(map(str, set(sample) - names))
    if missing or unknown:
        problems = [f"lacks {missing}"] if missing else []
        problems += [f"has {unknown}, which the model does not have"] if unknown else []
        raise InputError(f"{where} {' and '.join(problems)}", f"the model's inputs are {sorted(names)}")
    arrays = {name: np.asarray(value) for name, value in sample.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise InputError(f"{where} has NaN in {name!r}", "leave out samples that are not valid inputs")
    return arrays
