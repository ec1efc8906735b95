"""`quantize`: makes a float model smaller and faster, and measures its accuracy.

Layerwise schemes: candidates with layers rounded one by one, their cost, and the report.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from tvm.ir import IRModule
from typing_extensions import Unpack

import targets
from compiler.compression.job import Job, JobOptions, Sample, import_job
from compiler.compression.quantization.affine import Array, decibels, noise_ratio
from compiler.compression.quantization.calibration import Compile, ModuleWithTaps, scheme_for
from compiler.compression.quantization.edit import Emit, edit_main
from compiler.compression.quantization.insertion import Numbers
from compiler.compression.quantization.layer_choice import PREDICTED, LayerChoice, check_decide
from compiler.compression.quantization.layers import Layer, Placement, find_layers
from compiler.compression.quantization.report import (
    LayerReport,
    QuantizationReport,
    QuantizedModel,
    make_report,
    size_of,
)
from compiler.compression.quantization.rounding import GramMatrices, as_columns
from compiler.compression.quantization.schemes import STATIC, RoundedLayer, Scheme, SchemeOptions, make_scheme
from compiler.compression.quantization.sensitivity import measure_sensitivity
from compiler.compression.quantization.session import Session
from compiler.compression.quantization.settings import DEFAULT_TECHNIQUES, QuantizationOptions
from compiler.compression.quantization.speed import speed_limit
from compiler.driver.compile import compile as compile_model
from compiler.driver.compile import find_target
from compiler.errors import AccuracyError, NothingGainedError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.passes.rewriting.graph import Call, Expr, Var
from compiler.reports.formatting import plural
from compiler.runtime import Module
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
    """Quantize a model, keeping as much of it in float as its accuracy needs.

    Args:
        source, target, threads, and the import options (shapes, constants, state, capacity, ...): as in
            `tensorwright.compile`. Samples are inputs of the model without a capacity.
        calibration: representative inputs, {input name: array}; a few dozen are enough. Required by "static-int8",
        "gptq"
            and "adaround"; without it, other schemes are measured on random inputs.
        scheme: "static-int8" (weights and activations, ranges from the calibration), "dynamic-int8" (weights;
            activations at run time, with one scale per row of a matmul or per example of a convolution),
            "weight-int4" and "weight-int8" (weights only: of matmuls with one scale per group, of convolutions int8,
            quantized per output channel, which are expanded at load), "float16" and "bfloat16" (weights are stored in
            16 bits; sums are float32). Embedding tables become int8 in all integer
            schemes, with one scale per row.
        evaluate: a function that scores a function from inputs to outputs (dictionaries by name); higher is better. If
            missing: the mean cosine similarity with the float model's outputs on `calibration`.
        max_drop: the fraction of the float model's score that may be lost.
        method: calibration method for ranges of activations: "min-max", "percentile", "entropy" or "mse".
        activations: "uint8" or "int8"; None: the target's preference.
        per_channel: whether each filter's weights have their own scale; None: they do.
        group: for weight-only schemes: number of neighbors along the depth that share a scale, one of 16, 32, 64, 128,
            256.
        scales: the type of those scales, "float16" or "float32".
        techniques: methods that reduce the loss, used if the scheme supports them: "bias-correction", "equalization"
        (of
            convolutions, across layers) and "smoothing" (SmoothQuant, of matmuls) for static integers, "gptq" (later
            weights compensate for the rounding of earlier ones) for weight-only schemes, "adaround" (weights are
            rounded up or down, whichever changes the results least; replaces "gptq") for both, and "int16": if the
            limit does not hold, the most sensitive layers of static integers read 16-bit activations if that is enough,
            before they return to float.
        in_float: names of layers (as in the report) to leave in float.
        keep_slower: static integers only: whether layers that are slower in integers than in float, with their
            neighbors, stay integer for their size. Otherwise they return to float; if no layer is faster, all of them
            do.
        decide: how slower layers are found. "predicted": by a cost model of the target's machine, for x86-64; the same
            call returns the same model. "measured": by timing them here, if this machine can run the target; the whole
            model is then never slower than in float. Or the decisions of an earlier run, for any scheme: a dictionary
            from names of layers to "integer" or "float" (`report.precisions`), or the .json file written by
            `report.save_precisions`; the limit still holds.
        progress: called with the name of each step when it begins.

    Returns:
        A `QuantizedModel` for `tensorwright.compile`; its `report` describes the changes.

    Raises:
        AccuracyError: the limit does not hold with any layer quantized, or there is none to quantize.
        InputError, OptionError: the calibration or an option is invalid.
        UserError: importing or compiling failed.
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
        job.samples = [job.example()]
    if options.scheme == STATIC:
        return _static(job, options, decided)
    return _layerwise(job, options, decided, calibrated)


def _static(job: Job, options: QuantizationOptions, decided: str | Mapping[str, str]) -> QuantizedModel:
    """Quantize weights and activations to integers."""
    scheme = scheme_for(job.target, options.activations, options.per_channel)
    session = Session(job.model, job.samples, scheme, options.method, options.techniques, job.compile, job.report)
    session.leave_in_float(options.in_float)
    speed = None
    if not isinstance(decided, str):
        session.repeat(decided)
    elif not options.keep_slower:
        build = partial(compile_model, target=job.target, threads=job.threads)
        speed = speed_limit(session, decided, job.target, build, job.report)
    candidate, scores, tried = _within_limit(session, job)
    while speed is not None and speed.tightened(candidate, job.samples[0]):
        candidate, scores, more = _within_limit(session, job)
        tried += more
    job.report("report")
    summary = make_report(session, candidate, job.target.name, scores, job.max_drop, tried)
    if session.times:
        summary = replace(summary, decided=str(decided))
    return job.finished(
        QuantizedModel(**vars(replace(session.model, mod=candidate.mod)), name=job.name, report=summary)
    )


def _layerwise(
    job: Job, options: QuantizationOptions, decided: str | Mapping[str, str], calibrated: bool
) -> QuantizedModel:
    """Quantize weights, each layer separately, with activations quantized at run time or not at all."""
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
    """Interface of a session for the search for the accuracy limit."""

    @property
    def samples(self) -> Sequence[Sample]: ...
    @property
    def float_outputs(self) -> Sequence[Mapping[str, np.ndarray]]: ...
    @property
    def float_module(self) -> Module: ...
    @property
    def quantizable(self) -> list[Layer]: ...
    @property
    def tries_int16(self) -> bool: ...
    @property
    def left_in_float(self) -> list[tuple[str, str]]: ...
    @property
    def slower(self) -> Collection[str]: ...
    def rank(self, samples: int) -> None: ...
    def candidate(self, count: int, wide: bool = False) -> Found: ...


def _within_limit(session: _Search[Found], job: Job) -> tuple[Found, tuple[float, float], int]:
    """(the candidate within the limit with the fewest layers in float, the scores of the float model and of it, the
    number of measured candidates)"""
    evaluate = job.evaluate if job.evaluate is not None else likeness(session.samples, session.float_outputs)
    float_score, max_drop, report = score(evaluate, session.float_module.run), job.max_drop, job.report
    scores: dict[tuple[int, bool], float] = {}

    def holds(count: int, wide: bool = False) -> bool:
        report(f"evaluate with {plural(count, 'layer')} in {'16 bits' if wide else 'float'}" if count else "evaluate")
        scores[count, wide] = score(evaluate, session.candidate(count, wide).module.run)
        return relative_drop(float_score, scores[count, wide]) <= max_drop

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
        wide = session.tries_int16 and holds(len(layers), True)
        if wide:
            count = fewest(lambda tried: holds(tried, True), len(layers))
        else:
            count = fewest(holds, len(layers) - 1) if len(layers) > 1 else None
    if count is None:
        best = max(scores.values())
        raise AccuracyError(
            f"the limit max_drop={max_drop} does not hold with any layer quantized: {float_score:.6g} in float, at best"
            f" {best:.6g}",
            "allow a larger max_drop, give more calibration samples, or try another method=",
        )
    return session.candidate(count, wide), (float_score, scores[count, wide]), len(scores)


def _reasons(session: _Search[_Candidate]) -> str:
    """Reasons why the first few layers stay in float."""
    shown = [f"\n  {name}: {reason}" for name, reason in session.left_in_float[:_SHOWN]]
    return ":" + "".join(shown) if shown else ""


def _layerwise_report(
    session: LayerwiseSession,
    candidate: LayerwiseCandidate,
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
        layers=tuple(session.layer_reports(candidate)),
        size=size_of(session.float_module, candidate.module, session.samples[0]),
        group=options.group,
    )


@dataclass(frozen=True)
class LayerwiseCandidate:
    """A version of the model with some layers rounded."""

    mod: IRModule
    module: Module
    rounded: Mapping[Var, RoundedLayer]


class LayerwiseSession(LayerChoice):
    """`candidate(n)` rounds all layers except the n most sensitive ones; see `session.Session`.

    Attributes:
        float_outputs: outputs of the float model, one dictionary per sample.
        sensitivity: decibels by the layer's name, with only its weights rounded, once `rank` has measured them.
    """

    def __init__(
        self,
        model: ImportedModel,
        samples: Sequence[Sample],
        scheme: Scheme,
        compile_model: Compile,
        report: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.model, self.samples, self.scheme, self.compile = model, samples, scheme, compile_model
        self.graph = find_layers(model.mod, nodes=model.nodes)
        self.refuse_weights()
        for layer in self.quantizable:
            if (why := scheme.refuses(layer)) is not None:
                self.in_float[layer.name] = why
        self._rounded: dict[Var, RoundedLayer] = {}
        self._candidates: dict[int, LayerwiseCandidate] = {}
        report("calibrate")
        read = [layer for layer in self.quantizable if not layer.is_look_up and scheme.needs_gram(layer)]
        self._grams = GramMatrices(read)
        if read:
            self.float_outputs = self._observed()
        else:
            self.float_outputs = [dict(self.float_module.run(sample)) for sample in samples]

    def _observed(self) -> list[dict[str, Array]]:
        """The outputs of each sample; accumulates the Gram matrices of the layers' inputs."""
        sites = list(dict.fromkeys(layer.data for layer in self.quantizable if not layer.is_look_up))
        tapped = ModuleWithTaps(self.model, self.model.mod, sites, self.compile)
        outputs = []
        for sample in self.samples:
            result, tensors = tapped.run(sample)
            outputs.append(result)
            self.refuse_data([site for site, values in tensors.items() if not np.isfinite(values).all()])
            self._grams.add(tensors)
        return outputs

    @cached_property
    def float_module(self) -> Module:
        """The float model as compiled without quantization."""
        return self.compile(self.model)

    def rank(self, samples: int) -> None:
        """Measure the cost of rounding only each layer's weights."""
        if not self.sensitivity:
            layers = tuple(self.quantizable)
            placement = Placement(layers, (), (), {}, {})
            numbers = Numbers({}, {layer.variable: self._layer(layer) for layer in layers}, {})
            self.sensitivity = measure_sensitivity(self.model, placement, numbers, self.samples[:samples], self.compile)

    def candidate(self, count: int, wide: bool = False) -> LayerwiseCandidate:
        """The model with the `count` most sensitive layers in float; the last one is cached. Ignores `wide`."""
        if count not in self._candidates:
            layers = {layer.variable: layer for layer in self.ranked[count:]}
            chosen = {variable: self._layer(layer) for variable, layer in layers.items()}

            def edit(variable: Var, call: Call, emit: Emit) -> Expr | None:
                if variable not in chosen:
                    return None
                return chosen[variable].rewritten(layers[variable], call, emit)

            mod = edit_main(self.model.mod, edit)
            self._candidates = {count: LayerwiseCandidate(mod, self.compile(replace(self.model, mod=mod)), chosen)}
        return self._candidates[count]

    def _layer(self, layer: Layer) -> RoundedLayer:
        if layer.variable not in self._rounded:
            self._rounded[layer.variable] = self.scheme.rounded(layer, self._grams.of(layer))
        return self._rounded[layer.variable]

    def layer_reports(self, found: LayerwiseCandidate) -> list[LayerReport]:
        """One entry per layer."""
        reports = [self._layer_report(found, layer) for layer in self.choices]
        return [*reports, *(LayerReport(name, False, reason) for name, reason in self.graph.refused)]

    def _layer_report(self, found: LayerwiseCandidate, layer: Layer) -> LayerReport:
        rounded = found.rounded.get(layer.variable)
        sensitivity = self.sensitivity.get(layer.name)
        if rounded is None:
            most = "one of the most sensitive layers: the limit does not hold with it"
            reason = self.in_float.get(layer.name, most)
            return LayerReport(layer.name, False, reason, sensitivity=sensitivity)
        weight = rounded.dequantized()
        gram = self._grams.of(layer)
        noise = None
        if gram is not None:
            change, whole = (as_columns(layer, each) for each in (weight - layer.weight, layer.weight))
            noise = decibels(_energy(change, gram), _energy(whole, gram))
        return LayerReport(
            layer.name,
            True,
            noise=noise,
            sensitivity=sensitivity,
            weight_noise=decibels(*noise_ratio(weight, layer.weight)),
        )


def _energy(weight: Array, gram: Array) -> float:
    """The sum of squares of the data's products with columns."""
    return float(np.einsum("gkj,gkj->", weight, gram @ weight, dtype=np.float64))
