"""The report page of a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.profiling.attribution import KINDS, RUNTIME
from compiler.profiling.difference import differences, layer_times
from compiler.reports.charts import (
    Bar,
    BarChart,
    Column,
    Graph,
    Histogram,
    LineChart,
    Mark,
    Node,
    Series,
    ShareStrip,
    Span,
    Table,
    Timeline,
    layered,
)
from compiler.reports.formatting import (
    format_bytes,
    format_count,
    format_operations,
    format_percent,
    format_rate,
    format_seconds,
    plural,
)
from compiler.reports.page import Fact, Page, Section, render
from compiler.support.balance import tasks_text
from compiler.support.roofline import Roofline

if TYPE_CHECKING:
    from compiler.profiling.measured import CallTime, KernelTime, Profile

_BARS = 20
_UNTRACKED = "untracked"


def profile_page(profile: Profile, beside: Profile | Mapping[str, Any] | None = None) -> str:
    """The page as HTML text, with another profile of the model for comparison if given."""
    inputs = ", ".join(f"{name} {shape}" for name, shape in profile.inputs.items())
    return render(
        Page(
            title=f"{profile.model} on {profile.target}",
            subtitle=f"{inputs or 'no inputs'}; {plural(profile.threads, 'thread')}; {profile.machine}",
            facts=_facts(profile),
            sections=[*_sections(profile), *([] if beside is None else [_beside(profile, beside)])],
            categories=(*KINDS, _UNTRACKED),
        )
    )


def _facts(profile: Profile) -> list[Fact]:
    latency = profile.latency
    operations = sum(kernel.operations or 0 for kernel in profile.kernels)
    compiled = [kernel for kernel in profile.kernels if kernel.kind != KINDS[-1]]
    facts = [
        Fact("latency, median", format_seconds(latency.p50), f"{latency.runs} runs"),
        Fact("latency, p90", format_seconds(latency.p90), f"p99 {format_seconds(latency.p99)}"),
        Fact("throughput", f"{format_count(latency.throughput)} runs/s", "one run after the other"),
        Fact("kernels", str(len(compiled)), f"{sum(kernel.calls for kernel in compiled)} calls in a run"),
    ]
    if operations and latency.p50 > 0:
        note = f"{format_operations(operations)} in a run"
        facts.append(Fact("arithmetic", format_rate(operations / latency.p50), note))
    facts.append(Fact("outside kernels", format_seconds(_outside(profile)), "virtual machine and its functions"))
    return facts


def _outside(profile: Profile) -> float:
    runtime = sum(kernel.seconds for kernel in profile.kernels if kernel.kind == KINDS[-1])
    return runtime + max(0.0, profile.untracked)


def _sections(profile: Profile) -> list[Section]:
    shares = {**profile.seconds_by_kind(), _UNTRACKED: max(0.0, profile.untracked)}
    latency = profile.latency
    marks = [Mark("p50", latency.p50), Mark("p90", latency.p90), Mark("p99", latency.p99)]
    return [
        Section("Time by kind of work", ShareStrip({name: value for name, value in shares.items() if value > 0}, "s")),
        Section("Time by layer", BarChart(_bars(profile.layers), "s"), _instrument_note(profile)),
        Section(
            "One run",
            Timeline([*(_span(call) for call in profile.calls), *_thread_spans(profile)]),
            "The run nearest to the median: calls, and below them a row for each thread in parallel loops of kernels. "
            "Scroll to zoom, drag to move, double-click to reset.",
        ),
        *_memory(profile),
        Section("Cumulative share", _cumulative(profile.layers), _cumulative_note(profile.layers), narrow=True),
        Section(
            "Latency",
            Histogram(profile.samples, "s", "time of one run", marks),
            f"{latency.runs} runs without the instrument.",
            narrow=True,
        ),
        *([] if profile.roofline is None else [_roofline(profile, profile.roofline)]),
        Section(
            "Graph",
            _graph(profile),
            "A box is a layer, with time and shape of its result. Click it to mark its row, or a row to mark it.",
        ),
        Section("All layers", _table(profile), "Click a row for its nodes, shapes, configuration and limits."),
    ]


def _instrument_note(profile: Profile) -> str:
    return (
        f"In one run, the median over {profile.watched.runs} runs."
        f" The instrument took {format_seconds(profile.crossing)} per call, measured in the same run and subtracted."
    )


def _bars(kernels: Sequence[KernelTime]) -> list[Bar]:
    bars = [_bar(kernel) for kernel in kernels[:_BARS] if kernel.seconds > 0]
    rest = [kernel for kernel in kernels[_BARS:] if kernel.seconds > 0]
    if rest:
        seconds = sum(kernel.seconds for kernel in rest)
        share = format_percent(sum(kernel.share for kernel in rest))
        bars.append(Bar(f"{len(rest)} others", seconds, "", f"{format_seconds(seconds)} · {share}"))
    return bars


def _bar(kernel: KernelTime) -> Bar:
    text = f"{format_seconds(kernel.seconds)} · {format_percent(kernel.share)}"
    if kernel.rate is not None:
        text += f" · {format_rate(kernel.rate)}"
    calls = f"{plural(kernel.calls, 'call')} per run, {format_seconds(kernel.seconds / kernel.calls)} each"
    details = [f"operators: {', '.join(kernel.operators)}" if kernel.operators else "", calls]
    details.append(f"rule: {kernel.rule}" if kernel.rule else "")
    if kernel.nodes:
        details = [f"kernel: {kernel.name}", f"computes: {', '.join(kernel.nodes)}", *details]
    return Bar(kernel.label, kernel.seconds, kernel.kind, text, tuple(filter(None, details)))


def _span(call: CallTime) -> Span:
    details = [format_seconds(call.duration), ", ".join(call.shapes)]
    if call.operations and call.duration > 0:
        details.append(format_rate(call.operations / call.duration))
    if call.nodes:
        details += [f"kernel: {call.name}", f"computes: {', '.join(call.nodes)}"]
    return Span(call.label, call.kind, call.start, call.duration, call.depth, tuple(filter(None, details)))


def _thread_spans(profile: Profile) -> list[Span]:
    """A row below the calls for each thread, with its work in parallel loops."""
    below = max((call.depth for call in profile.calls), default=0) + 1
    spans = []
    for work in profile.thread_times:
        call = profile.calls[work.call]
        details = (
            format_seconds(work.duration),
            f"thread {work.thread + 1} of {profile.threads}",
            plural(work.parts, "part"),
        )
        spans.append(Span(call.label, call.kind, work.start, work.duration, below + work.thread, details))
    return spans


def _cumulative(kernels: Sequence[KernelTime]) -> LineChart:
    total = sum(kernel.seconds for kernel in kernels) or 1.0
    points, labels, seconds = [(0.0, 0.0)], [""], 0.0
    for rank, kernel in enumerate(kernels, start=1):
        seconds += kernel.seconds
        points.append((float(rank), seconds / total))
        labels.append(kernel.label)
    return LineChart([Series("share", points)], "slowest layers", "share of their time", "", "%", labels=labels)


def _cumulative_note(kernels: Sequence[KernelTime]) -> str:
    total = sum(kernel.seconds for kernel in kernels)
    seconds = 0.0
    for rank, kernel in enumerate(kernels, start=1):
        seconds += kernel.seconds
        if seconds >= 0.8 * total:
            return f"{rank} of {len(kernels)} take 80 % of the time."
    return ""


def _roofline(profile: Profile, limits: Roofline) -> Section:
    """Layers by arithmetic intensity and operations per second, below the processor's limits."""
    layers = [each for each in profile.layers if each.rate and each.nbytes and each.operations]
    points = [(each.operations / each.nbytes, each.rate) for each in layers if each.operations and each.rate]
    least, most = (edge([x for x, _ in points] or [1.0]) for edge in (min, max))
    left, right = least / 2, max(most * 2, 2 * limits.peak / limits.memory_bandwidth)

    def roof(bandwidth: float) -> list[tuple[float, float]]:
        return [(x, min(limits.peak, bandwidth * x)) for x in sorted({left, limits.peak / bandwidth, right})]

    chart = LineChart(
        [
            Series("layers", points),
            Series("memory limit", roof(limits.memory_bandwidth), line=True),
            Series("last-level cache limit", roof(limits.cache_bandwidth), line=True),
        ],
        "operations per byte",
        "operations per second",
        "",
        "1/s",
        points=True,
        log=True,
        labels=[each.label for each in layers],
    )
    return Section("Roofline", chart, f"{limits.source}; peak {format_rate(limits.peak)} in float32.")


def _memory(profile: Profile) -> list[Section]:
    """Bytes of tensors between kernels over the time of a run; empty if kernels only write results."""
    most = max((call.live_bytes for call in profile.calls), default=0)
    if not most:
        return []
    last = profile.calls[-1]
    end = max(call.start + call.duration for call in profile.calls)
    series = [Series("alive", [*((call.start, call.live_bytes) for call in profile.calls), (end, last.live_bytes)])]
    note = f"At most {format_bytes(most)} of tensors are alive at once"
    if profile.planned_bytes is not None:
        series.append(Series("memory plan", [(0.0, profile.planned_bytes), (end, profile.planned_bytes)]))
        note += f"; the memory plan holds {format_bytes(profile.planned_bytes)}"
    labels = [*(call.label for call in profile.calls), ""]
    chart = LineChart(series, "time in the run", "bytes", "s", "B", steps=True, area=True, labels=labels)
    return [Section("Memory", chart, f"{note}. Parameters, inputs and memory inside of kernels are not counted.")]


def _edges(profile: Profile) -> tuple[list[int], list[tuple[int, int]]]:
    """The layers with kernels in order of their first run, and the pairs whose second layer reads a result of the
    first.

    Without reads of a layer's own results, or in a loop of a layer that first runs later.
    """
    first: dict[int, int] = {}
    for call in profile.calls:
        if call.kind != RUNTIME:
            first.setdefault(call.layer, len(first))
    pairs = dict.fromkeys((profile.calls[each].layer, call.layer) for call in profile.calls for each in call.reads)
    return list(first), [(source, layer) for source, layer in pairs if first[source] < first[layer]]


def _graph(profile: Profile) -> Graph:
    order, edges = _edges(profile)
    results = {call.layer: call.shapes[-1] for call in profile.calls if call.shapes}
    nodes = []
    for layer in order:
        kernel = profile.layers[layer]
        sizes = results.get(layer, "").partition("[")[2].rstrip("]").replace(", ", "x")
        text = f"{format_seconds(kernel.seconds)} · {sizes}"
        details = tuple(f"{name}: {value}" for name, value in _details(profile, layer))
        nodes.append(Node(layer, kernel.label, kernel.kind, text, details=details))
    return layered(nodes, edges)


def _beside(profile: Profile, other: Profile | Mapping[str, Any]) -> Section:
    rows = [
        {"label": each.name, "seconds": each.seconds, "other": each.other, "ratio": _ratio(each.other, each.seconds)}
        for each in differences(layer_times(profile), layer_times(other))
    ]
    columns = [
        Column("label", "layer"),
        Column("seconds", "here", "s", number=True),
        Column("other", "other", "s", number=True),
        Column("ratio", "other / here", number=True),
    ]
    p50 = float(other["latency"]["p50"]) if isinstance(other, Mapping) else other.latency.p50
    here = profile.latency.p50
    note = f"A run takes {format_seconds(here)} here, {format_seconds(p50)} there. Layers that differ most come first."
    return Section("Compared with the other profile", Table(columns, rows), note)


def _ratio(other: float | None, seconds: float | None) -> float | None:
    return other / seconds if other is not None and seconds else None


def _details(profile: Profile, layer: int) -> list[list[str]]:
    """Names and values shown when a row of the table is clicked."""
    kernel = profile.layers[layer]
    calls = [call for call in profile.calls if call.layer == layer]
    shapes = dict.fromkeys(", ".join(call.shapes) for call in calls)
    sources = dict.fromkeys(profile.layers[profile.calls[each].layer].label for call in calls for each in call.reads)
    details = [
        ["computes", ", ".join(kernel.nodes)],
        ["tensors", "\n".join(shapes)],
        ["reads results of", ", ".join(sources)],
        ["operators", ", ".join(kernel.operators)],
        ["configuration", ", ".join(f"{name} {value}" for name, value in kernel.config.items() if value != "")],
        ["tasks", "" if kernel.rule is None else tasks_text(kernel.tasks, kernel.serial)],
        ["balance", "" if kernel.balance is None else format_percent(kernel.balance)],
    ]
    if kernel.bandwidth:
        details.append(["memory", f"{format_bytes(round(kernel.bandwidth))}/s"])
    if profile.roofline is not None and kernel.operations and kernel.nbytes:
        least = profile.roofline.seconds(kernel.operations, kernel.nbytes)
        details.append(["least time", f"{format_seconds(least)} by the roofline"])
    return [each for each in details if each[1]]


def _table(profile: Profile) -> Table:
    columns = [
        Column("label", "layer"),
        Column("name", "kernel"),
        Column("kind", "kind"),
        Column("rule", "rule"),
        Column("calls", "calls", number=True),
        Column("seconds", "time", "s", number=True),
        Column("share", "share", "%", number=True, bar=True),
        Column("operations", "FLOP", "", number=True),
        Column("rate", "FLOP/s", "1/s", number=True),
        Column("nbytes", "bytes", "B", number=True),
    ]
    rows = [
        {
            "label": kernel.label,
            "name": kernel.name,
            "kind": kernel.kind,
            "rule": kernel.rule,
            "calls": kernel.calls,
            "seconds": kernel.seconds,
            "share": kernel.share,
            "operations": kernel.operations or None,
            "rate": kernel.rate,
            "nbytes": kernel.nbytes or None,
            "details": _details(profile, layer),
            "layer": layer,
        }
        for layer, kernel in enumerate(profile.layers)
    ]
    return Table(columns, rows, category_key="kind", sort_by="seconds", details_key="details", id_key="layer")
