"""`quantize`: a float model in, a smaller and faster one out, with its accuracy measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, Sample, import_job
from compiler.compression.quantization.calibration import scheme_for
from compiler.compression.quantization.layer_choice import PREDICTED, check_decide
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.layerwise import LayerwiseCandidate, LayerwiseSession
from compiler.compression.quantization.report import QuantizationReport, QuantizedModel, make_report, size_of
from compiler.compression.quantization.schemes import STATIC, SchemeOptions, make_scheme
from compiler.compression.quantization.session import Session
from compiler.compression.quantization.settings import DEFAULT_TECHNIQUES, QuantizationOptions
from compiler.compression.quantization.speed import speed_limit
from compiler.driver.compile import compile as compile_model
from compiler.driver.compile import find_target
from compiler.errors import AccuracyError, NothingGainedError
from compiler.frontends.source import ImportOptions
from compiler.reports.formatting import plural
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs
from compiler.support.accuracy import Evaluate, fewest, likeness, relative_drop, score
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress

_RANKING_SAMPLES = 8
_SHOWN = 5  # number of reasons in a message
Steps = Callable[[str], None]


@interruptible
@shows_progress
@takes_imports
def quantize(
    source: object,
    calibration: Iterable[Mapping[str, np.ndarray]] | None = None,
    *,
    scheme: str = STATIC,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    method: str = "mse",
    activations: str | None = None,
    per_channel: bool | None = None,
    group: int = 64,
    scales: str = "float16",
    techniques: Collection[str] = DEFAULT_TECHNIQUES,
    in_float: Collection[str] = (),
    keep_slower: bool = False,
    decide: str | Path | Mapping[str, str] = PREDICTED,
    threads: int | None = None,
    progress: Steps | None = automatic,
    **imports: Unpack[ImportArguments],
) -> QuantizedModel:
    """Quantize a model, and keep as much of it in float as its accuracy needs.

    Args:
        source, target, threads, and how the source is imported (shapes, constants, state, capacity, ...): as in
            `tensorwright.compile`. Samples are inputs of the model without a capacity.
        calibration: inputs as the model will meet them, {input name: array}; a few dozen are enough. "static-int8"
            needs them, and so do "gptq" and "adaround"; other schemes are measured on random inputs where there are
            none.
        scheme: "static-int8" (weights and activations, ranges from the calibration), "dynamic-int8" (weights;
            activations as they come, with one scale per row of a matrix product or per example of a convolution),
            "weight-int4" and "weight-int8" (weights alone: of matrix products with one scale per group, of
            convolutions int8, quantized per output channel, which are expanded at load), "float16" and
            "bfloat16" (weights are stored in 16 bits; sums are float32). Tables of look-ups become int8 in all integer
            schemes, with one scale per row.
        evaluate: given a function from inputs to outputs (dictionaries by name), how good it is; higher is better.
            Without one: the mean cosine between the outputs and the float model's on `calibration`.
        max_drop: how much of that may be lost, as a share of the float model's.
        method: how ranges of activations are chosen: "min-max", "percentile", "entropy" or "mse".
        activations: "uint8" or "int8"; what suits the target when None.
        per_channel: whether each filter's weights have their own scale; they do when None.
        group: of weights alone: how many neighbours along the depth share a scale, one of 16, 32, 64, 128, 256.
        scales: the type of those scales, "float16" or "float32".
        techniques: what is done to lose less, where the scheme has a use for it: "bias-correction", "equalization" (of
            convolutions, across layers) and "smoothing" (SmoothQuant, of matrix products) of static integers, "gptq"
            (later weights make up for the rounding of earlier ones) of weights alone, "adaround" (weights are rounded
            up or down, whichever changes products least; in place of "gptq") of both, and "int16": where the limit does
            not hold, the most sensitive layers of static integers read 16-bit activations if that is enough, before
            they go back to float.
        in_float: names of layers (as in the report) to leave in float.
        keep_slower: static integers alone: whether layers that are slower in integers than in float, with their
            neighbours, stay integers for their size. They go back to float otherwise; where no layer is faster, all of
            them do.
        decide: by what layers are taken to be slower. "predicted": by a cost model of the target's machine, for x86-64;
            the same call gives the same model. "measured": by timing them here, where this machine runs the target; the
            whole is then never slower than in float. Or what an earlier run decided, for any scheme: a dictionary from
            names of layers to "integer" or "float" (`report.precisions`), or the .json file that
            `report.save_precisions` wrote; the limit holds all the same.
        progress: called with the name of each step as it begins.

    Returns:
        A `QuantizedModel` for `tensorwright.compile`; its `report` says what was done.

    Raises:
        AccuracyError: the limit does not hold with any layer quantized, or there is none to quantize.
        InputError, OptionError: the calibration or an option is at fault.
        UserError: of importing and compiling.
    """
    options = options_of(QuantizationOptions, locals())
    common = options_of(JobOptions, {**locals(), "target": find_target(target, threads)})
    return _quantized(source, options, common, ImportOptions.of(imports))


def _quantized(
    source: object, options: QuantizationOptions, common: JobOptions, imports: ImportOptions
) -> QuantizedModel:
    decided = check_decide(options.decide)
    calibrated = common.calibration is not None
    options.check(find_target(common.target), calibrated)
    job = import_job(source, common, imports)
    if not calibrated:
        job.samples = [random_inputs(job.model.inputs, indices=job.model.indices)]
    if options.scheme == STATIC:
        return _static(job, options, decided)
    return _layerwise(job, options, decided, calibrated)


def _static(job: Job, options: QuantizationOptions, decided: str | Mapping[str, str]) -> QuantizedModel:
    """Weights and activations in integers."""
    scheme = scheme_for(job.target, options.activations, options.per_channel)
    session = Session(job.model, job.samples, scheme, options.method, options.techniques, job.compile, job.report)
    session.leave_in_float(options.in_float)
    speed = None
    if not isinstance(decided, str):
        session.repeat(decided)
    elif not options.keep_slower:
        build = partial(compile_model, target=job.target, threads=job.threads)
        speed = speed_limit(session, decided, job.target, build, job.report)
    found, scores, tried = _within_limit(session, job)
    while speed is not None and speed.tightened(found, job.samples[0]):
        found, scores, more = _within_limit(session, job)
        tried += more
    job.report("report")
    summary = make_report(session, found, job.target.name, scores, job.max_drop, tried)
    if session.times:
        summary = replace(summary, decided=str(decided))
    return job.finished(QuantizedModel(**vars(replace(session.model, mod=found.mod)), name=job.name, report=summary))


def _layerwise(
    job: Job, options: QuantizationOptions, decided: str | Mapping[str, str], calibrated: bool
) -> QuantizedModel:
    """Weights, each layer by itself; activations as they come."""
    chosen = options.layerwise(calibrated)
    session = LayerwiseSession(job.model, job.samples, make_scheme(options.scheme, chosen), job.compile, job.report)
    session.leave_in_float(options.in_float)
    if not isinstance(decided, str):
        session.repeat(decided)
    candidate, scores, tried = _within_limit(session, job)
    job.report("report")
    summary = replace(
        _layerwise_report(session, candidate, scores, job.max_drop, tried, chosen),
        target=job.target.name,
        scheme=options.scheme,
        generated=not calibrated,
    )
    return job.finished(QuantizedModel(**vars(replace(job.model, mod=candidate.mod)), name=job.name, report=summary))


class _Candidate(Protocol):
    @property
    def module(self) -> Module: ...


Found = TypeVar("Found", bound=_Candidate, covariant=True)


class _Search(Protocol[Found]):
    """Interface of a session to the search for the accuracy limit."""

    @property
    def samples(self) -> Sequence[Sample]: ...
    @property
    def float_outputs(self) -> Sequence[Mapping[str, np.ndarray]]: ...
    @property
    def float_module(self) -> Module: ...
    @property
    def quantizable(self) -> list[Layer]: ...
    @property
    def widens(self) -> bool: ...
    @property
    def left_in_float(self) -> list[tuple[str, str]]: ...
    @property
    def slower(self) -> Collection[str]: ...
    def rank(self, samples: int) -> None: ...
    def candidate(self, count: int, wide: bool = False) -> Found: ...


def _within_limit(session: _Search[Found], job: Job) -> tuple[Found, tuple[float, float], int]:
    """(the candidate that holds the limit with the fewest layers in float, the scores of the float model and of it, how
    many were measured)"""
    evaluate = job.evaluate if job.evaluate is not None else likeness(session.samples, session.float_outputs)
    before, max_drop, report = score(evaluate, session.float_module.run), job.max_drop, job.report
    scores: dict[tuple[int, bool], float] = {}

    def holds(count: int, wide: bool = False) -> bool:
        report(f"evaluate with {plural(count, 'layer')} in {'16 bits' if wide else 'float'}" if count else "evaluate")
        scores[count, wide] = score(evaluate, session.candidate(count, wide).module.run)
        return relative_drop(before, scores[count, wide]) <= max_drop

    layers = session.quantizable
    if not layers and not session.slower:
        raise NothingGainedError(
            f"the model has no layer that this scheme quantizes{_reasons(session)}",
            "try another scheme=, or compile it in float",
        )
    count: int | None = 0
    wide = False
    if not holds(0):
        report("rank layers")
        session.rank(_RANKING_SAMPLES)
        wide = session.widens and holds(len(layers), True)
        if wide:
            count = fewest(lambda tried: holds(tried, True), len(layers))
        else:
            count = fewest(holds, len(layers) - 1) if len(layers) > 1 else None
    if count is None:
        best = max(scores.values())
        raise AccuracyError(
            f"the limit max_drop={max_drop} does not hold with any layer quantized: {before:.6g} in float, at best"
            f" {best:.6g}",
            "allow a larger max_drop, give more calibration samples, or try another method=",
        )
    return session.candidate(count, wide), (before, scores[count, wide]), len(scores)


def _reasons(session: _Search[_Candidate]) -> str:
    """Reasons why the first few layers stay in float."""
    shown = [f"\n  {name}: {reason}" for name, reason in session.left_in_float[:_SHOWN]]
    return ":" + "".join(shown) if shown else ""


def _layerwise_report(
    session: LayerwiseSession,
    found: LayerwiseCandidate,
    scores: tuple[float, float],
    limit: float,
    evaluations: int,
    options: SchemeOptions,
) -> QuantizationReport:
    """Report of a layerwise scheme; fields of the static scheme stay empty."""
    before, after = scores
    return QuantizationReport(
        target="",
        method="",
        techniques=(options.rounding,) if any(map(session.scheme.needs_gram, session.choices)) else (),
        activations="",
        per_channel=True,
        samples=len(session.samples),
        before=before,
        after=after,
        drop=relative_drop(before, after),
        max_drop=limit,
        evaluations=evaluations,
        layers=tuple(session.layer_reports(found)),
        size=size_of(session.float_module, found.module, session.samples[0]),
        group=options.group,
    )
