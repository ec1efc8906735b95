"""Making the report of a finished quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.compression.quantization.calibration import Array, Tapped
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.report import LayerReport, QuantizationReport, Size
from compiler.compression.quantization.session import Candidate, Session
from compiler.passes.rewriting.graph import Var
from compiler.profiling.timing import reported_seconds
from compiler.runtime import Module
from compiler.support.accuracy import relative_drop

_NOISE_SAMPLES = 4


def make_report(
    session: Session,
    found: Candidate,
    target: str,
    scores: tuple[float, float],
    max_drop: float,
    evaluations: int,
) -> QuantizationReport:
    """Everything there is to say about the candidate that was chosen."""
    noise = _noise(session, found)
    reports = [_layer(session, found, layer, noise) for layer in session.choices]
    reports += [LayerReport(name, False, reason) for name, reason in session.graph.refused]
    before, after = scores
    return QuantizationReport(
        target=target,
        method=session.method,
        techniques=session.techniques,
        activations=session.scheme.activations,
        per_channel=session.scheme.per_channel,
        samples=len(session.samples),
        before=before,
        after=after,
        drop=relative_drop(before, after),
        max_drop=max_drop,
        evaluations=evaluations,
        layers=tuple(reports),
        size=size_of(session.float_module, found.module, session.samples[0]),
    )


def _noise(session: Session, found: Candidate) -> dict[Var, float]:
    """Signal to noise of each layer's result in the whole quantized model."""
    taps = [layer.variable for layer in session.choices]
    rounded = Tapped(session.model, found.mod, taps, session.compile)
    totals: Mapping[Var, Array] = {tap: np.zeros(2) for tap in taps}
    for sample in session.samples[:_NOISE_SAMPLES]:
        wanted, got = session.tapped.run(sample)[1], rounded.run(sample)[1]
        for tap in taps:
            totals[tap][:] += noise_ratio(got[tap], wanted[tap])
    return {tap: decibels(float(noise), float(signal)) for tap, (noise, signal) in totals.items()}


def _layer(session: Session, found: Candidate, layer: Layer, noise: Mapping[Var, float]) -> LayerReport:
    numbers = found.numbers
    report = LayerReport(
        layer.name,
        layer.variable in numbers.weights,
        noise=noise[layer.variable],
        sensitivity=session.sensitivity.get(layer.name),
    )
    if (time := session.times.get(layer.name)) is not None:
        report = replace(report, float_seconds=time.floats, integer_seconds=time.integers, spread=time.spread)
    if not report.integer:
        reason = session.in_float.get(layer.name, "one of the most sensitive layers: the limit does not hold with it")
        return replace(report, reason=reason)
    weight = numbers.weights[layer.variable]
    report = replace(report, weight_noise=decibels(*noise_ratio(weight.dequantized(), layer.weight)))
    affine = numbers.activations.get(layer.data)
    if affine is None:
        return report
    low, high = affine.limits
    return replace(
        report,
        low=low,
        high=high,
        scale=affine.scale,
        zero=affine.zero,
        activations=affine.dtype,
        clipped=session.statistics[layer.data].histogram.share_outside(low, high),
    )


def size_of(before: Module, after: Module, sample: Mapping[str, Array]) -> Size:
    """Bytes and time of the float module and the quantized one."""
    modules = before, after
    sizes = [sum(parameter.nbytes for parameter in module.manifest.parameters) for module in modules]
    seconds = [reported_seconds(partial(module.run, sample), threads=module.threads) for module in modules]
    return Size(sizes[0], sizes[1], *seconds)
