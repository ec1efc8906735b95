"""`tensorwright compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from compiler.cli import options
from compiler.cli.arguments import divide_shapes, parse_arrays, parse_shapes
from compiler.cli.options import argument, command_of, flag, option
from compiler.cli.output import print_json, print_line, print_note, print_table
from compiler.cli.progress import Steps

HELP = """Compare a model's outputs with another runtime's, and name the first layer that differs.

Exits with 1 if an output differs by more than the tolerance.

[bold]Typical[/]

  tensorwright compare model.onnx --with onnxruntime

[bold]Examples[/]

  With your own inputs, and always layer by layer:
    tensorwright compare model.onnx --input inputs.npz --layers

  The first node that differs, with its inputs and outputs in both runtimes:
    tensorwright compare model.onnx --first-difference first.npz

  Sizes of dynamic dimensions, for random inputs:
    tensorwright compare bert.onnx --shape batch=2 --shape sequence=128
"""
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Path = argument("An .onnx or .pt2 file.", "MODEL")
    reference: str | None = option(
        "onnxruntime, onnx (the onnx package's evaluator); torch for .pt2.", "NAME", "--with"
    )
    inputs: list[str] | None = options.INPUTS
    shape: list[str] | None = options.RUN_SHAPES
    constant: list[str] | None = options.CONSTANTS
    target: str = options.TARGET
    tolerance: float = option("Maximum difference, relative to the largest value.", "SHARE", default=1e-3)
    layers: bool = flag("Compare layer by layer even if the outputs agree.", "--layers")
    first_difference: Path | None = option(
        "Find the first node that differs, and write its tensors to this file (.npz).", "FILE"
    )
    threads: int | None = options.THREADS
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.paths import check_writable
    from compiler.inspection.comparison import compare
    from compiler.inspection.model_inspection import model_inputs

    if given.first_difference is not None:
        check_writable(given.first_difference)
    specs = {each.name: each for each in model_inputs(given.model)}
    fixed, sizes = divide_shapes(parse_shapes(given.shape or []), set(specs))
    with Steps() as steps:
        comparison = compare(
            given.model,
            parse_arrays(given.inputs or [], "--input", specs) or None,
            reference=given.reference,
            target=given.target,
            shapes=fixed or None,
            constants=parse_arrays(given.constant or [], "--constant", specs) or None,
            sizes=sizes or None,
            tolerance=given.tolerance,
            layers=given.layers or None,
            first_difference=given.first_difference is not None,
            threads=given.threads,
            progress=steps,
        )
    if given.first_difference is not None and comparison.tensors:
        comparison.save_first(given.first_difference)
        print_note(f"wrote {given.first_difference}: {', '.join(comparison.tensors)}")
    if given.as_json:
        print_json(comparison.to_dict())
    else:
        _print(comparison)
    if not comparison.equal:
        raise typer.Exit(1)


def _print(comparison: Any) -> None:
    shown = [each for each in comparison.layers if each.differs][:_SHOWN]
    rows = [(each.name, each.node, f"{each.error:.3g}", each.problem) for each in (*comparison.outputs, *shown)]
    print_table(("value", "node", "error", "problem"), rows, ("error",))
    print_line()
    print_line(comparison.summary)
