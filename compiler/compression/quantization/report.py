"""Result and report of a quantization, layer by layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from compiler.compression.model import ReportedModel
from compiler.compression.quantization.affine import NO_NOISE, decibels, noise_ratio
from compiler.compression.quantization.calibration import Array, ModuleWithTaps
from compiler.compression.quantization.layer_choice import FLOAT, INTEGER, MEASURED, write_precisions
from compiler.compression.quantization.layers import Layer
from compiler.compression.quantization.schemes import STATIC
from compiler.compression.quantization.session import Candidate, Session
from compiler.compression.report import save_report, size_lines
from compiler.passes.rewriting.graph import Var
from compiler.profiling.timing import reported_seconds
from compiler.reports.charts import Bar, BarChart, Column, Table
from compiler.reports.formatting import format_bytes, format_percent, format_seconds, plural
from compiler.reports.page import Fact, Page, Section, render
from compiler.runtime import Module
from compiler.support.accuracy import relative_drop
from compiler.support.notebook import table_html

_IN_INTEGERS = ("static-int8", "dynamic-int8")
_KINDS = ("integer", "float")
_EXACT = "exact"
_DECIBELS = ("noise", "sensitivity", "weights")
_LONGEST_BAR = 80.0  # decibels; larger values would dwarf the others in the chart


@dataclass(frozen=True)
class LayerReport:
    """One layer of the model.

    Attributes:
        integer: True if it is quantized.
        reason: the reason why it is in float.
        noise: SNR of its result in the whole quantized model, in decibels; None if not measured.
        sensitivity: SNR of the model's outputs with only this layer quantized; None if not measured.
        low, high: calibrated range of its activations.
        scale, zero: scale and zero point of its activations.
        activations: type of its activations.
        clipped: the fraction of the calibration's values outside the representable range.
        weight_noise: SNR of its weights, in decibels.
        float_seconds, integer_seconds: time of its kernel in either form, as given by the report's `decided`; None if
        they
            were not compared.
        spread: relative variation of measurements of those times.
    """

    name: str
    integer: bool
    reason: str = ""
    noise: float | None = None
    sensitivity: float | None = None
    low: float | None = None
    high: float | None = None
    scale: float | None = None
    zero: int | None = None
    activations: str | None = None
    clipped: float | None = None
    weight_noise: float | None = None
    float_seconds: float | None = None
    integer_seconds: float | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Size:
    """Before and after: bytes of the parameters, and seconds per run (the median, on the first sample)."""

    float_bytes: int
    integer_bytes: int
    float_seconds: float
    integer_seconds: float


@dataclass(frozen=True)
class QuantizationReport:
    """Report of `quantize`.

    Attributes:
        scheme: one of `schemes.registry.scheme_names()`; `method`, `activations` and `per_channel` only apply to the
            static one, `group` only to weight-only ones.
        generated: True if the samples are random numbers, since the caller gave none.
        before, after: the results of `evaluate`, or the mean cosine similarity with the float model's outputs.
        drop: the relative loss; `max_drop` was its limit.
        evaluations: number of quantized models measured.
        decided: "predicted" or "measured", if layers were left in float for their speed; otherwise "".
    """

    target: str
    method: str
    techniques: tuple[str, ...]
    activations: str
    per_channel: bool
    samples: int
    before: float
    after: float
    drop: float
    max_drop: float
    evaluations: int
    layers: tuple[LayerReport, ...]
    size: Size
    scheme: str = "static-int8"
    group: int | None = None
    generated: bool = False
    decided: str = ""

    @property
    def in_float(self) -> tuple[LayerReport, ...]:
        """The layers left in float."""
        return tuple(layer for layer in self.layers if not layer.integer)

    @property
    def summary(self) -> str:
        """One line: how many layers run quantized, and why the others do not; a warning if that is below half."""
        count, total = len(self.layers) - len(self.in_float), len(self.layers)
        reasons = Counter(re.split(r"[:(,]", layer.reason, maxsplit=1)[0].strip() for layer in self.in_float)
        why = ", ".join(f"{number} {reason or 'without a stated reason'}" for reason, number in reasons.most_common())
        few = "WARNING: only " if 2 * count < total else ""
        where = "in integers" if self.scheme in _IN_INTEGERS else "quantized"
        return f"{few}{count} of {total} layers run {where}" + (f"; in float: {why}" if why else "")

    @property
    def precisions(self) -> dict[str, str]:
        """ "integer" or "float" by the layer's name, for `quantize(decide=...)`."""
        return {layer.name: INTEGER if layer.integer else FLOAT for layer in self.layers}

    def save_precisions(self, path: str | Path) -> None:
        """Write `precisions` as a .json file. Raises StorageError."""
        write_precisions(self.precisions, path)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def save(self, path: str | Path) -> None:
        """Write a page (.html) or the numbers (.json).

        Raises:
            OptionError: another suffix.
            StorageError: the file cannot be written.
        """
        save_report(path, lambda: quantization_page(self), self.to_dict)

    def __repr__(self) -> str:
        return f"<QuantizationReport {self.scheme}: {self.summary}; score {self.before:.6g}, then {self.after:.6g}>"

    def _repr_html_(self) -> str:
        rows = [
            (each.name, "integer" if each.integer else "float", "-" if each.noise is None else each.noise, each.reason)
            for each in self.layers
        ]
        title = f"{self.scheme}: {self.summary}. Score {self.before:.6g}, then {self.after:.6g}"
        return table_html(title, ("layer", "runs in", "SNR in dB", "why in float"), rows)

    def __str__(self) -> str:
        lines = [
            f"{self.scheme}: {self.summary}",
            f"score {self.before:.6g}, then {self.after:.6g} (drop {self.drop:.3%}, limit {self.max_drop:.3%})",
            *size_lines(
                (self.size.float_bytes, self.size.integer_bytes), (self.size.float_seconds, self.size.integer_seconds)
            ),
        ]
        if self.size.integer_seconds > self.size.float_seconds:
            lines.append("slower than in float on this machine: the only gain is size")
        if self.generated:
            lines.append("measured on random inputs: give calibration= with representative inputs")
        if self.decided == MEASURED:
            spread = max((layer.spread or 0.0 for layer in self.layers), default=0.0)
            lines.append(f"times of layers were measured; they varied by up to {spread:.0%}")
        lines += [f"  {layer.activations}: {layer.name}" for layer in self.layers if layer.activations == "int16"]
        return "\n".join([*lines, *(f"  in float: {layer.name}: {layer.reason}" for layer in self.in_float)])


def quantization_page(report: QuantizationReport) -> str:
    """The page as HTML text."""
    samples = f"{plural(report.samples, 'sample')}" + (" of random numbers" if report.generated else "")
    return render(
        Page(
            title=f"Quantization for {report.target}",
            subtitle="; ".join([_scheme(report), samples, *report.techniques]),
            facts=_facts(report),
            sections=_sections(report),
            categories=_KINDS,
        )
    )


def _scheme(report: QuantizationReport) -> str:
    if report.scheme != STATIC:
        return report.scheme + ("" if report.group is None else f", a scale per {report.group} neighbors")
    granularity = "per output channel" if report.per_channel else "per tensor"
    return f"activations {report.activations}, weights int8, quantized {granularity}; {report.method}"


def _facts(report: QuantizationReport) -> list[Fact]:
    size, layers = report.size, report.layers
    integer = sum(layer.integer for layer in layers)
    return [
        Fact("score", f"{report.after:.6g}", f"float {report.before:.6g}"),
        Fact("drop", format_percent(report.drop), f"limit {format_percent(report.max_drop)}"),
        Fact("layers quantized", f"{integer} of {len(layers)}", f"{plural(report.evaluations, 'model')} measured"),
        Fact("parameters", format_bytes(size.integer_bytes), f"float {format_bytes(size.float_bytes)}"),
        Fact("time per run", format_seconds(size.integer_seconds), f"float {format_seconds(size.float_seconds)}"),
    ]


def _sections(report: QuantizationReport) -> list[Section]:
    sections = []
    noise = _bars(report, "noise")
    if noise:
        note = "Each layer's result in the quantized model against the float model, in decibels: higher is better."
        sections.append(Section("Signal-to-noise ratio by layer", BarChart(noise), note))
    sensitivity = _bars(report, "sensitivity")
    if sensitivity:
        note = "Signal-to-noise ratio at the outputs with only that layer quantized: the lowest go back to float first."
        sections.append(Section("Sensitivity", BarChart(sensitivity), note))
    sections.append(Section("All layers", _table(report)))
    return sections


def _bars(report: QuantizationReport, field: str) -> list[Bar]:
    return [
        Bar(layer.name, min(max(value, 0.0), _LONGEST_BAR), _kind(layer), _in_words(value))
        for layer in report.layers
        if (value := getattr(layer, field)) is not None
    ]


def _in_words(value: float) -> str:
    return _EXACT if value >= NO_NOISE else f"{value:.1f} dB"


def _kind(layer: LayerReport) -> str:
    return _KINDS[0] if layer.integer else _KINDS[1]


def _table(report: QuantizationReport) -> Table:
    columns = [
        Column("name", "layer"),
        Column("kind", "computes in"),
        Column("noise", "SNR dB", number=True),
        Column("sensitivity", "output SNR dB", number=True),
        Column("weights", "weights dB", number=True),
        Column("low", "low", number=True),
        Column("high", "high", number=True),
        Column("scale", "scale", number=True),
        Column("zero", "zero", number=True),
        Column("clipped", "clipped", number=True),
        Column("reason", "reason"),
    ]
    return Table(columns, [_row(layer) for layer in report.layers], category_key="kind")


def _row(layer: LayerReport) -> dict[str, object]:
    numbers = {
        "noise": layer.noise,
        "sensitivity": layer.sensitivity,
        "weights": layer.weight_noise,
        "low": layer.low,
        "high": layer.high,
        "scale": layer.scale,
        "zero": layer.zero,
        "clipped": layer.clipped,
    }
    rounded: dict[str, object] = {
        key: None if value is None else float(f"{value:.4g}") for key, value in numbers.items()
    }
    exact = {key: _EXACT for key in _DECIBELS if (numbers[key] or 0.0) >= NO_NOISE}
    return {"name": layer.name, "kind": _kind(layer), "reason": layer.reason, **rounded, **exact}


@dataclass(frozen=True, kw_only=True, repr=False)
class QuantizedModel(ReportedModel):
    """A model with quantized tensors, for `tensorwright.compile`."""

    report: QuantizationReport


QuantizedModel.__module__ = "tensorwright"  # public import path, for reprs, tracebacks and pickles


_NOISE_SAMPLES = 4


def make_report(
    session: Session, found: Candidate, target: str, scores: tuple[float, float], max_drop: float, evaluations: int
) -> QuantizationReport:
    """The full report of the chosen candidate."""
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


def _noise(session: Session, candidate: Candidate) -> dict[Var, float]:
    """SNR of each layer's result in the whole quantized model."""
    taps = [layer.variable for layer in session.choices]
    rounded = ModuleWithTaps(session.model, candidate.mod, taps, session.compile)
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
