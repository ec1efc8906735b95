"""`quantize`: a float model in, one that computes in integers out, with its accuracy measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import targets
from compiler.compression.quantization.accuracy import Evaluate, fewest, likeness, relative_drop, score
from compiler.compression.quantization.calibration import checked_samples
from compiler.compression.quantization.model import QuantizedModel
from compiler.compression.quantization.scheme import scheme_for
from compiler.compression.quantization.session import Candidate, Session
from compiler.compression.quantization.summary import make_report
from compiler.driver import compile as compile_model
from compiler.driver import find_target, model_name
from compiler.errors import AccuracyError, OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import Constants, Shapes, import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.runtime import Module

TECHNIQUES = ("bias-correction", "equalization", "smoothing")
_RANKING_SAMPLES = 8


def quantize(
    source: object,
    calibration: Iterable[Mapping[str, np.ndarray]],
    *,
    evaluate: Evaluate | None = None,
    max_drop: float = 0.01,
    target: str | targets.Target = "host",
    method: str = "mse",
    activations: str | None = None,
    per_channel: bool | None = None,
    techniques: Collection[str] = ("bias-correction",),
    in_float: Collection[str] = (),
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    threads: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> QuantizedModel:
    """Quantize a model to 8-bit integers, and keep as much of it in float as its accuracy needs.

    Args:
        source, shapes, constants, example_inputs, dynamic_shapes, target, threads: as `compiler.compile` takes them.
        calibration: inputs as the model will meet them, {input name: array}; a few dozen are enough.
        evaluate: given a function from inputs to outputs (dictionaries by name), how good it is; higher is better.
            Without one: the mean cosine between the outputs and the float model's on `calibration`.
        max_drop: how much of that may be lost, as a share of the float model's.
        method: how ranges of activations are chosen: "min-max", "percentile", "entropy" or "mse".
        activations: "uint8" or "int8"; what suits the target when None.
        per_channel: whether each filter's weights have their own scale; they do when None.
        techniques: what is done to lose less: "bias-correction", "equalization" (of convolutions, across layers) and
            "smoothing" (SmoothQuant, of matrix products).
        in_float: names of layers (as in the report) to leave in float.
        progress: called with the name of each step as it begins.

    Returns:
        A `QuantizedModel` for `compiler.compile`; its `report` says what was done.

    Raises:
        AccuracyError: the limit does not hold with any layer quantized, or there is none to quantize.
        InputError, OptionError: the calibration or an option is at fault.
        UserError: of importing and compiling.
    """
    report = progress if progress is not None else _silent
    unknown = sorted(set(techniques) - set(TECHNIQUES))
    if unknown:
        raise OptionError(f"techniques= has {', '.join(unknown)}", f"there are {', '.join(TECHNIQUES)}")
    if not 0 <= max_drop < 1:
        raise OptionError(f"max_drop={max_drop}", "give a share of 0 up to 1, like 0.01")
    chosen = find_target(target, threads)
    report("import")
    imported = import_model(
        source, shapes=shapes, constants=constants, example_inputs=example_inputs, dynamic_shapes=dynamic_shapes
    )
    context = PipelineContext(target=chosen, machine=chosen.machine, options={"checks": imported.checks})
    model = replace(imported, mod=run_pipeline(imported.mod, context, until="canonicalize").mod)
    samples = checked_samples(calibration, model)

    def compiled(candidate: ImportedModel) -> Module:
        inputs = {spec.name for spec in candidate.inputs}
        known = samples[0] if inputs == set(samples[0]) else None
        return compile_model(candidate, chosen, threads=threads, reference_inputs=known)

    session = Session(
        model, samples, scheme_for(chosen, activations, per_channel), method, techniques, compiled, report
    )
    session.leave_in_float(in_float)
    measure = evaluate if evaluate is not None else likeness(samples, session.float_outputs)
    before = score(measure, session.float_module.run)
    found, after, tried = _within_limit(session, measure, before, max_drop, report)
    report("report")
    summary = make_report(session, found, chosen.name, (before, after), max_drop, tried)
    return QuantizedModel(**vars(replace(session.model, mod=found.mod)), name=model_name(source), report=summary)


def _within_limit(
    session: Session, evaluate: Evaluate, before: float, max_drop: float, report: Callable[[str], None]
) -> tuple[Candidate, float, int]:
    """(the candidate that holds the limit with the fewest layers in float, its score, how many were measured)"""
    scores: dict[int, float] = {}

    def holds(count: int) -> bool:
        report(f"evaluate with {count} layer(s) in float" if count else "evaluate")
        scores[count] = score(evaluate, session.candidate(count).module.run)
        return relative_drop(before, scores[count]) <= max_drop

    layers = session.quantizable
    if not layers:
        raise AccuracyError(
            "the model has no layer that can compute in integers", "see report.layers, or compile it in float"
        )
    count: int | None = 0
    if not holds(0):
        report("rank layers")
        session.rank(_RANKING_SAMPLES)
        count = fewest(holds, len(layers) - 1) if len(layers) > 1 else None
    if count is None:
        best = max(scores.values())
        raise AccuracyError(
            f"the limit max_drop={max_drop} does not hold with any layer quantized: {before:.6g} in float, at best"
            f" {best:.6g}",
            "allow a larger max_drop, give more calibration samples, or try another method=",
        )
    return session.candidate(count), scores[count], len(scores)


def _silent(_: str) -> None:
    return None
