"""`tensorwright run`.

Predictions of a module on pictures, texts and recordings, as `tensorwright run` shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compiler
from compiler.cli import options
from compiler.cli.arguments import parse_arrays, parse_shapes, split_shapes
from compiler.cli.options import argument, flag, option
from compiler.cli.output import print_heading, print_json, print_line, print_note, print_table
from compiler.errors import OptionError
from compiler.reports.formatting import format_percent, plural

if TYPE_CHECKING:
    from compiler.runtime import Module
    from compiler.runtime.prediction import Prediction

HELP = """Run a module once and show its outputs.

A module compiled with processing accepts pictures, texts or recordings. Inputs that are not given come from the
module's stored example, or are random.

[bold]Typical[/]

  tensorwright run detector.twm cat.jpg
  tensorwright run model.twm --input image=photo.npy --output out.npz

[bold]Examples[/]

  The picture with its boxes, written to a file of your choice; a text; a recording:
    tensorwright run detector.twm cat.jpg --output boxes.png
    tensorwright run embedder.twm --text "The cat sleeps."
    tensorwright run vad.twm speech.wav

  Texts ranked by how well they answer a query:
    tensorwright run reranker.twm --query "Who sleeps?" --text "The cat sleeps." --text "Stocks fell."

  All inputs from one archive, and the module checked against its stored example first:
    tensorwright run model.twm --input inputs.npz --verify

  A module from elsewhere, refused unless signed by a key that you trust:
    tensorwright run model.twm --trusted-key release.pem.pub

  Values on the command line; a dynamic dimension for the random inputs:
    tensorwright run vad.twm --input sr=16000 --shape batch=4
"""


def command(
    module: Path = options.MODULE_PATH,
    files: list[Path] | None = argument(
        "Pictures, or recordings (.wav), for a module with processing.", "[FILE]...", default=None
    ),
    text: list[str] | None = option("A text to embed or rank; repeat for more.", "TEXT", "--text", "-t"),
    query: str | None = option("Rank the texts by how well they answer this query.", "TEXT", "--query", "-q"),
    inputs: list[str] | None = options.INPUTS,
    shape: list[str] | None = options.RUN_SHAPES,
    output: Path | None = option("Write the outputs (.npz), or the picture, to this file.", "FILE", "--output", "-o"),
    verify: bool = flag("Also run the stored example and compare.", "--verify"),
    threads: int | None = options.THREADS,
    trusted: list[Path] | None = options.TRUSTED_KEYS,
    as_json: bool = options.JSON,
) -> None:
    from compiler.cli.paths import check_is_module, check_writable
    from compiler.profiling.workload import complete_inputs, describe_arrays, made_up_note, save_arrays

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
    parsed = parse_arrays(inputs or [], "--input", specs)
    sizes = split_shapes(parse_shapes(shape or []), loaded.inputs)
    arrays = complete_inputs(loaded, parsed, sizes or None)
    note = made_up_note(loaded, parsed, sizes)
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
    for kind, arrays in described.items():
        print_heading(kind)
        rows = [
            (
                row["name"],
                row["dtype"],
                str(row["shape"]),
                *(_number(row[key]) for key in ("min", "max", "mean")),
                str(row["nan"]),
            )
            for row in arrays
        ]
        numbers = ("min", "max", "mean", "NaN")
        print_table(("name", "type", "shape", *numbers), rows, numbers)
        print_line()
    if verified:
        print_line("verified: the stored example reproduces the stored outputs")
    if output is not None:
        print_line(f"wrote {output}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


_NUMBERS = 6  # shown elements of a vector


def show_predictions(module: Module, given: Sequence[Path | str], output: Path | None, as_json: bool) -> None:
    """Print the predictions for each input, and write the pictures with boxes to `output` or, by name, to this folder.

    Raises OptionError if `output` is one file for several inputs or is no picture, for texts that the module does not
    read, and as `Module.predict`.
    """
    from compiler.runtime.prediction import processing_of
    from compiler.support.processing import IMAGE_TASKS

    _check_output(module, given, output)
    if any(isinstance(source, str) for source in given) and processing_of(module).task in (*IMAGE_TASKS, "speech"):
        raise OptionError("--text is for modules that read texts", "give this one a file: tensorwright run MODULE FILE")
    documents = []
    for source in given:
        prediction = module.predict(source)
        path = _written(prediction, source, output)
        documents.append({"input": str(source), **prediction.to_dict(), **({} if path is None else {"picture": path})})
        if as_json:
            continue
        if len(given) > 1:
            print_heading(str(source))
        _print_prediction(prediction)
        if path is not None:
            print_line(f"wrote {path}")
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])


def show_ranking(module: Module, query: str, texts: Sequence[str], as_json: bool) -> None:
    """Print texts ranked by how well they answer a query, best first. Raises as `Module.rank`."""

    ranking = module.rank(query, texts)
    if as_json:
        print_json(ranking.to_dict())
    else:
        rows = [(f"{each.score:.4f}", str(each.place + 1), each.text) for each in ranking]
        print_table(("score", "place", "text"), rows, ("score", "place"))


def _check_output(module: Module, inputs: Sequence[Path | str], output: Path | None) -> None:
    from compiler.cli.paths import check_writable
    from compiler.runtime.prediction import processing_of
    from compiler.support.media_files import SUFFIXES

    if output is None:
        return
    if processing_of(module).task not in ("detect", "segment"):
        raise OptionError("--output is for pictures with boxes or masks", "use --json, and redirect it to a file")
    if len(inputs) > 1:
        raise OptionError("--output is one file, and there are several pictures", "leave it out, or run one at a time")
    if output.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--output {output} is no picture", f"end its name in one of {', '.join(SUFFIXES)}")
    check_writable(output)


def _written(prediction: Prediction, given: Path | str, output: Path | None) -> Path | None:
    """Write the picture with its boxes or mask, and return the file; None if there is none."""
    from compiler.runtime.prediction import Detections, Segmentation

    if not isinstance(prediction, Detections | Segmentation):
        return None
    source = Path(given)
    what = "boxes" if isinstance(prediction, Detections) else "mask"
    path = output if output is not None else Path(f"{source.stem}-{what}{source.suffix}")
    prediction.save(path)
    return path


def _print_prediction(prediction: Prediction) -> None:
    from compiler.runtime.prediction import Classes, Detections, Segmentation, Text, Vector

    if isinstance(prediction, Text):
        print_line(f"{prediction} ({prediction.score:.3f})")
        return
    if isinstance(prediction, Vector):
        shown = ", ".join(f"{each:.4f}" for each in prediction.values[:_NUMBERS])
        print_line(f"[{shown}, ...] ({len(prediction.values)} numbers; --json prints all)")
        return
    if not len(prediction):
        print_line("nothing was found")
        return
    rows: list[tuple[str, ...]]
    if isinstance(prediction, Detections):
        rows = [(each.name, f"{each.score:.3f}", *(f"{edge:.1f}" for edge in each.box)) for each in prediction]
        columns: Any = ("name", "score", "left", "top", "right", "bottom")
    elif isinstance(prediction, Segmentation):
        rows = [(each.name, format_percent(each.share)) for each in prediction]
        columns = ("name", "share of the picture")
    elif isinstance(prediction, Classes):
        rows = [(each.name, f"{each.score:.3f}") for each in prediction]
        columns = ("name", "score")
    else:
        rows = [(f"{each.start:.2f} s", f"{each.end:.2f} s") for each in prediction]
        columns = ("from", "to")
        print_line(f"speech in {plural(len(rows), 'part')}")
    print_table(columns, rows, columns[1:])
