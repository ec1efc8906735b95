"""`tensorwright inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler.cli import options
from compiler.cli.arguments import divide_shapes, parse_arrays, parse_shapes
from compiler.cli.options import flag, option
from compiler.cli.output import print_facts, print_heading, print_json, print_line, print_note, print_table
from compiler.errors import OptionError
from compiler.reports.formatting import (
    format_bytes,
    format_count,
    format_operations,
    format_percent,
    format_seconds,
    plural,
    shorten,
)

_SHOWN = 15

HELP = """Show the contents of a model or a module, and estimate its time.

For a model: inputs, outputs, operators and which of them are supported, parameters, and for each kernel its
arithmetic, its bytes and the minimum time on the target. For a module: its manifest.

[bold]Typical[/]

  tensorwright inspect model.onnx

[bold]Examples[/]

  Estimates for a size of a dynamic dimension, on another processor:
    tensorwright inspect bert.onnx --shape sequence=128 --target x86-64-v3

  The graph of fused kernels, for netron.app or Model Explorer:
    tensorwright inspect model.onnx --graph kernels.onnx

  For a program:
    tensorwright inspect model.twm --json | jq .inputs
"""


def command(
    file: Path = options.ANY_PATH,
    target: str = options.TARGET,
    shape: list[str] | None = options.RUN_SHAPES,
    constant: list[str] | None = options.CONSTANTS,
    graph: Path | None = option("Also write a model's graph of fused kernels as an .onnx file for Netron."),
    everything: bool = flag(f"Show all layers, not the first {_SHOWN}.", "--all"),
    as_json: bool = options.JSON,
) -> None:
    from compiler.cli.paths import check_writable
    from compiler.inspection.contents import inspect_module, is_module_file

    if graph is not None:
        check_writable(graph, "--graph")
    if is_module_file(file):
        if shape or constant or graph:
            raise OptionError("--shape, --constant and --graph are for models", f"{file} is compiled already")
        inspection = inspect_module(file)
    else:
        from compiler.inspection.model_inspection import inspect_model, model_inputs  # loads TVM

        specs: dict[str, Any] = {each.name: each for each in model_inputs(file)} if constant or shape else {}
        constants = parse_arrays(constant or [], "--constant", specs)
        shapes, sizes = divide_shapes(parse_shapes(shape or []), specs)
        inspection = inspect_model(
            file, target, shapes=shapes or None, constants=constants or None, sizes=sizes or None
        )
        if graph is not None:
            from compiler.inspection.graph_export import export_graph

            export_graph(file, graph, target, shapes=shapes or None, constants=constants or None)
    if as_json:
        print_json(inspection.to_dict())
    else:
        _print(inspection, None if everything else _SHOWN)
        if graph is not None:
            print_note(f"wrote {graph}; open it with netron.app")


def _print(inspection: Any, limit: int | None) -> None:
    values = format_count(inspection.parameter_values)
    size = format_bytes(inspection.parameter_bytes)
    print_facts(
        [
            (inspection.kind, f"{inspection.path}, {format_bytes(inspection.file_bytes)}"),
            ("inputs", "\n".join(inspection.inputs) or "none"),
            ("outputs", "\n".join(inspection.outputs) or "none"),
            ("parameters", f"{values} in {plural(inspection.parameters, 'tensor')}, {size}"),
            *inspection.facts.items(),
        ]
    )
    if inspection.operators:
        _print_operators(inspection)
    if inspection.kernels:
        _print_kernels(inspection, limit)
    if inspection.problem is not None:
        print_line()
        print_note(f"no estimate: {inspection.problem}")


def _print_operators(inspection: Any) -> None:
    print_line()
    counts: dict[str, int] = {}
    for item in inspection.operators:
        counts[item.support] = counts.get(item.support, 0) + item.count
    total = sum(counts.values())
    supports = ", ".join(f"{count} {support}" for support, count in counts.items())
    print_heading(f"{plural(total, 'operator')}: {supports}")
    rows = [(item.operator, str(item.count), item.support, item.reason) for item in inspection.operators]
    print_table(("operator", "count", "support", "reason"), rows, ("count",))


def _print_kernels(inspection: Any, limit: int | None) -> None:
    kernels = inspection.kernels[:limit]
    print_line()
    if inspection.kind == "module":
        print_heading(plural(len(inspection.kernels), "kernel"))
        numbers: tuple[str, ...] = ("FLOP per call", "tasks", "balance")
        columns = ("layer", "kind", "rule (config from)", *numbers, "kernel")
        rows = [_module_row(item) for item in kernels]
    else:
        print_heading(_estimate_heading(inspection))
        numbers = ("calls", "FLOP", "bytes", "least time", "share")
        columns = ("layer", *numbers, "kernel")
        rows = [_model_row(item) for item in kernels]
    print_table(columns, rows, numbers)
    hidden = len(inspection.kernels) - len(kernels)
    if hidden:
        print_line(f"and {hidden} more: --all shows them")


def _estimate_heading(inspection: Any) -> str:
    total = format_seconds(sum(item.seconds for item in inspection.kernels))
    operations = format_operations(sum(item.operations or 0 for item in inspection.kernels))
    taken = "".join(f", {name} = {size}" for name, size in inspection.sizes.items())
    calls = sum(item.calls for item in inspection.kernels)
    return f"where time will go: at least {total} per run, {operations} in {calls} calls of kernels{taken}"


def _module_row(item: Any) -> tuple[str, ...]:
    from compiler.support.balance import tasks_text

    work = format_count(item.operations) if item.operations is not None else item.formula or "-"
    shares = tasks_text(item.tasks, item.serial), format_percent(item.balance) if item.balance is not None else "-"
    return shorten(item.label, 48), item.kind, item.rule, work, *shares, shorten(item.name, 32) if item.nodes else "-"


def _model_row(item: Any) -> tuple[str, ...]:
    return (
        shorten(item.label, 48),
        str(item.calls),
        format_count(item.operations) if item.operations is not None else "-",
        format_bytes(item.nbytes),
        format_seconds(item.seconds),
        format_percent(item.share),
        shorten(item.name, 32) if item.nodes else "-",
    )
