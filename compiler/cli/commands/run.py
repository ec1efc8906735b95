"""`tensorwright run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli import options

HELP = """Run a module once and show what comes out.

A module that was compiled with processing takes pictures, texts or recordings. Inputs that are not given are the
module's stored example, or random.

[bold]Typical[/]

  tensorwright run detector.twm cat.jpg
  tensorwright run model.twm --input image=photo.npy --output out.npz

[bold]Examples[/]

  The picture with its boxes, as a file of your choice; a text; a recording:
    tensorwright run detector.twm cat.jpg --output boxes.png
    tensorwright run embedder.twm --text "The cat sleeps."
    tensorwright run vad.twm speech.wav

  Texts in the order in which they answer a query:
    tensorwright run reranker.twm --query "Who sleeps?" --text "The cat sleeps." --text "Stocks fell."

  All inputs from one archive, and the module checked against its stored example first:
    tensorwright run model.twm --input inputs.npz --verify

  A module from elsewhere, refused unless a key that you trust signed it:
    tensorwright run model.twm --trusted-key release.pem.pub

  Values written out; a dynamic dimension set for the random rest:
    tensorwright run vad.twm --input sr=16000 --shape batch=4
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("run", help=HELP)(_run)


def _run(
    module: options.ModulePath,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Pictures, or recordings (.wav): of a module with processing.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", metavar="TEXT", help="A text to embed or rank; repeat for more.")
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", metavar="TEXT", help="Order the texts by how well they answer it.")
    ] = None,
    inputs: options.Inputs = None,
    shape: options.RunShapes = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the outputs (.npz), or the picture, there."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Also run the stored example and compare.")] = False,
    threads: options.Threads = None,
    trusted: options.TrustedKeys = None,
    as_json: options.Json = False,
) -> None:
    import compiler
    from compiler.cli.arguments import parse_arrays, parse_shapes, split_shapes
    from compiler.cli.output import print_json, print_note
    from compiler.cli.paths import check_is_module, check_writable
    from compiler.cli.predictions import show_predictions, show_ranking
    from compiler.profiling.outputs import describe_arrays, save_arrays
    from compiler.profiling.workload import complete_inputs, made_up_note

    check_is_module(module)
    if files or text:
        loaded = compiler.load(module, threads=threads, trusted_keys=trusted or None, verify=verify)
        if query is not None:
            show_ranking(loaded, query, text or [], as_json)
        else:
            show_predictions(loaded, [*(files or []), *(text or [])], output, as_json)
        return
    if output is not None:
        check_writable(output)
    loaded = compiler.load(module, threads=threads, trusted_keys=trusted or None, verify=verify)
    specs = {spec.name: spec for spec in loaded.inputs}
    given = parse_arrays(inputs or [], "--input", specs)
    sizes = split_shapes(parse_shapes(shape or []), loaded.inputs)
    arrays = complete_inputs(loaded, given, sizes or None)
    note = made_up_note(loaded, given, sizes)
    if note is not None:
        print_note(note)
    outputs = loaded.run(arrays)
    if output is not None:
        save_arrays(outputs, output)
    described = {"inputs": describe_arrays(arrays), "outputs": describe_arrays(outputs)}
    if as_json:
        print_json({**described, "verified": verify, "output": output})
    else:
        _print(described, output, verify)


def _print(described: dict[str, list[Any]], output: Path | None, verified: bool) -> None:
    from compiler.cli.output import print_heading, print_line, print_table

    for kind, arrays in described.items():
        print_heading(kind)
        rows = [
            (
                each["name"],
                each["dtype"],
                str(each["shape"]),
                *(_number(each[key]) for key in ("min", "max", "mean")),
                str(each["nan"]),
            )
            for each in arrays
        ]
        numbers = ("min", "max", "mean", "NaN")
        print_table(("name", "type", "shape", *numbers), rows, numbers)
        print_line()
    if verified:
        print_line("verified: the stored example gives the stored outputs")
    if output is not None:
        print_line(f"wrote {output}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
