"""The report of a quantization as a page."""

from __future__ import annotations

from compiler.compression.quantization.affine import NO_NOISE
from compiler.compression.quantization.report import LayerReport, QuantizationReport
from compiler.compression.quantization.schemes.registry import STATIC
from compiler.reports import Bar, BarChart, Column, Fact, Page, Section, Table, render
from compiler.reports.formatting import format_bytes, format_percent, format_seconds

_KINDS = ("integer", "float")
_LONGEST_BAR = 80.0  # decibels: what is better is as good, and would dwarf the others


def quantization_page(report: QuantizationReport) -> str:
    """The page as HTML text."""
    samples = f"{report.samples} sample(s)" + (" of random numbers" if report.generated else "")
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
        return report.scheme + ("" if report.group is None else f", a scale for {report.group} neighbours")
    granularity = "a scale a filter" if report.per_channel else "one scale a weight"
    return f"activations {report.activations}, weights int8 with {granularity}; {report.method}"


def _facts(report: QuantizationReport) -> list[Fact]:
    size, layers = report.size, report.layers
    integer = sum(layer.integer for layer in layers)
    return [
        Fact("score", f"{report.after:.6g}", f"float {report.before:.6g}"),
        Fact("drop", format_percent(report.drop), f"limit {format_percent(report.max_drop)}"),
        Fact("layers quantized", f"{integer} of {len(layers)}", f"{report.evaluations} model(s) measured"),
        Fact("parameters", format_bytes(size.integer_bytes), f"float {format_bytes(size.float_bytes)}"),
        Fact("a run", format_seconds(size.integer_seconds), f"float {format_seconds(size.float_seconds)}"),
    ]


def _sections(report: QuantizationReport) -> list[Section]:
    sections = []
    noise = _bars(report, "noise")
    if noise:
        note = "Of each layer's result in the quantized model against the float model, in decibels: low is bad."
        sections.append(Section("Signal to noise by layer", BarChart(noise), note))
    sensitivity = _bars(report, "sensitivity")
    if sensitivity:
        note = "At the outputs, in decibels, with that layer alone quantized: what is low goes back to float first."
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
    return "exact" if value >= NO_NOISE else f"{value:.1f} dB"


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
    rounded = {key: None if value is None else float(f"{value:.4g}") for key, value in numbers.items()}
    return {"name": layer.name, "kind": _kind(layer), "reason": layer.reason, **rounded}
