"""`write_variants`: writes modules of one model in several precisions and sizes, each with its accuracy and cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Unpack

import targets
from compiler.artifact import read_artifact
from compiler.artifact.variants import VariantEntry, VariantIndex, write_index
from compiler.compression.job import Job, JobOptions, Samples, import_job
from compiler.compression.quantization import quantize
from compiler.compression.recipe import compress
from compiler.driver.compile import check_precision
from compiler.driver.compile import compile as compile_model
from compiler.errors import AccuracyError, NothingGainedError, OptionError, storage_errors
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime import Module
from compiler.runtime.identity import module_identity
from compiler.support.accuracy import Evaluate, check_max_drop, likeness, relative_drop, score
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, takes_imports
from compiler.support.precision import precision_name
from compiler.support.progress_bar import automatic, shows_progress

REFERENCE = "float32"
_PRECISIONS = ("float32", "bf16", "float16")
_SCHEMES = {"int8": "static-int8", "dynamic-int8": "dynamic-int8", "weight-int8": "weight-int8", "int4": "weight-int4"}
DEFAULT = ("float32", "bf16", "int8")


@dataclass(frozen=True)
class VariantsReport:
    """Report of the variants that were written, and of those that were left out.

    Attributes:
        left_out: variants that are not in the folder, with the reason.
    """

    folder: Path
    index: VariantIndex
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"folder": str(self.folder), **self.index.model_dump(), "left_out": dict(self.left_out)}

    def __str__(self) -> str:
        lines = [f"{self.index.model_name}: {self.index.measure}"]
        lines += [
            f"  {each.name:<14} accuracy {each.accuracy:.4f}  {each.cost_ms:.3f} ms a row  {each.bytes / 1e6:.2f} MB"
            for each in self.index.variants
        ]
        return "\n".join([*lines, *(f"  {name} left out: {reason}" for name, reason in self.left_out.items())])


@interruptible
@shows_progress
@takes_imports
def write_variants(
    source: object,
    folder: str | os.PathLike[str],
    variants: Sequence[str] | Mapping[str, object] = DEFAULT,
    *,
    calibration: Samples | None = None,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.05,
    target: str | targets.Target = "host",
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> VariantsReport:
    """Compile variants of a model into a folder that a server loads as one model.

    Args:
        source, calibration, evaluate, target, threads, progress, and the import options: as in `tensorwright.prune`.
            Without `evaluate` the score is the mean cosine similarity with float32 on the calibration; one of the two
            is required.
        variants: names ("float32", "bf16", "float16", "int8", "dynamic-int8", "weight-int8", "int4"), or a mapping from
            custom names to one of these, a recipe of `compress`, or a model (a distilled network). float32 is always
            included as the baseline.
        max_drop: variants that lose more of the score are left out.

    Returns:
        The written index, and the variants left out.

    Raises:
        OptionError: a variant is neither a name nor a recipe, or accuracy cannot be measured.
        StorageError: the folder cannot be written.
        UserError: importing or compiling failed.
    """
    if calibration is None and evaluate is None:
        raise OptionError("the accuracy of variants cannot be measured", "give calibration= or evaluate=")
    check_max_drop(max_drop)
    samples = None if calibration is None else list(calibration)
    options = JobOptions(
        target=target, threads=threads, calibration=samples, evaluate=evaluate, max_drop=max_drop, progress=progress
    )
    how = ImportOptions.of(imports)
    if how.capacity is not None:
        raise OptionError("capacity= does not apply to variants: servers run models without sessions", "leave it out")
    wanted = dict(variants) if isinstance(variants, Mapping) else {name: name for name in variants}
    maker = _Maker(source, options, how)
    modules, left_out = maker.modules({REFERENCE: REFERENCE, **wanted})
    path = Path(folder)
    with storage_errors(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
    index = _written(path, maker, modules, left_out)
    return VariantsReport(path, index, left_out)


class _Maker:
    """Compiles and measures the variants of one model."""

    def __init__(self, source: object, options: JobOptions, imports: ImportOptions) -> None:
        self._source, self._options, self._imports = source, options, imports
        self.job: Job = import_job(source, options, imports)
        self.scores: dict[str, float] = {}
        self.made: dict[str, str] = {}

    def modules(self, wanted: Mapping[str, object]) -> tuple[dict[str, Module], dict[str, str]]:
        """The modules by name, and the reasons why others are missing."""
        modules: dict[str, Module] = {}
        left_out: dict[str, str] = {}
        for name, how in wanted.items():
            self.job.report(f"variant {name}")
            self.made[name] = how if isinstance(how, str) else type(how).__name__
            try:
                module = self._module(name, how)
            except (NothingGainedError, AccuracyError) as error:
                left_out[name] = error.message
                continue
            self._score(name, module, modules)
            drop = relative_drop(self.scores[REFERENCE], self.scores[name])
            if drop > self._options.max_drop:
                left_out[name] = f"it loses {drop:.2%} of the score (limit {self._options.max_drop:.2%})"
            else:
                modules[name] = module
        return modules, left_out

    def _score(self, name: str, module: Module, modules: Mapping[str, Module]) -> None:
        from_floats = name == REFERENCE and self.job.evaluate is None
        if from_floats:
            outputs = [dict(module.run(sample)) for sample in self.job.samples]
            self.job.evaluate = likeness(self.job.samples, outputs)
        assert self.job.evaluate is not None
        self.scores[name] = score(self.job.evaluate, module.run)

    def _module(self, name: str, how: object) -> Module:
        if not isinstance(how, str):
            return self._compiled(how if isinstance(how, ImportedModel) else self._imports.load(how))
        how = precision_name(how)
        if how in _PRECISIONS:
            try:
                check_precision(self.job.target, how)
            except OptionError as error:
                raise NothingGainedError(error.message) from error
            return self._compiled(self.job.model, how)
        common = {**vars(self._options), **self._imports.given()}
        if how in _SCHEMES:
            scheme = _SCHEMES[how]
            if scheme == "static-int8" and self._options.calibration is None:
                raise NothingGainedError("static-int8 needs calibration data")
            return self._compiled(quantize(self._source, scheme=scheme, **common))
        if "->" not in how and how == precision_name(name):
            known = ", ".join((*_PRECISIONS, *_SCHEMES))
            raise OptionError(f"there is no variant {name!r}", f"known: {known}; or NAME=RECIPE")
        return self._compiled(compress(self._source, how, **common))

    def _compiled(self, model: ImportedModel, precision: str | None = None) -> Module:
        names = {spec.name for spec in model.inputs}
        samples = self.job.samples
        known = samples[0] if samples and names == set(samples[0]) else None
        return compile_model(
            model, self.job.target, precision=precision, threads=self._options.threads, reference_inputs=known
        )

    def costs_ms(self, modules: Mapping[str, Module]) -> dict[str, float]:
        """Cost per row in milliseconds, with all variants measured alternately."""
        inputs = self.job.example()
        rows = max((len(array) for array in inputs.values() if array.ndim), default=1)
        # One thread each: processor time counts.
        settings = {name: module.threads for name, module in modules.items()}
        for module in modules.values():
            module.threads = 1
        runs = [lambda module=module: module.run(inputs) for module in modules.values()]
        seconds = interleaved_seconds(runs)
        for name, module in modules.items():
            module.threads = settings[name]
        return {name: 1000 * each / max(rows, 1) for name, each in zip(modules, seconds, strict=True)}


def _written(folder: Path, maker: _Maker, modules: Mapping[str, Module], left_out: Mapping[str, str]) -> VariantIndex:
    costs = maker.costs_ms(modules)
    reference = maker.scores[REFERENCE]
    entries = []
    for name, module in modules.items():
        path = folder / f"{name}.twm"
        module.export(path)
        entries.append(
            VariantEntry(
                name=name,
                file=path.name,
                identity=module_identity(Module(read_artifact(path))),
                score=maker.scores[name],
                accuracy=1.0 - relative_drop(reference, maker.scores[name]),
                cost_ms=costs[name],
                bytes=sum(each.nbytes for each in module.manifest.parameters),
                made=maker.made[name],
            )
        )
    given = maker._options.evaluate is not None
    measure = "the caller's evaluate" if given else "mean cosine similarity with float32 on the calibration"
    index = VariantIndex(model_name=maker.job.name, reference=REFERENCE, measure=measure, variants=tuple(entries))
    write_index(folder, index)
    return index
