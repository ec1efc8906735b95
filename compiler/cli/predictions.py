"""Predictions of a module on pictures, texts and recordings, as `tensorwright run` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.runtime import Module
    from compiler.runtime.prediction import Prediction

_NUMBERS = 6  # of a vector that are shown


def show_predictions(module: Module, given: Sequence[Path | str], output: Path | None, as_json: bool) -> None:
    """Print what a module finds in each, and write the pictures with boxes: to `output`, or beside here by their names.

    Raises OptionError where `output` is one file for several, or is no picture, and as `Module.predict`.
    """
    from compiler.cli.output import print_heading, print_json, print_line

    _check_output(module, given, output)
    documents = []
    for each in given:
        found = module.predict(each)
        path = _written(found, each, output)
        documents.append({"input": str(each), **found.to_dict(), **({} if path is None else {"picture": path})})
        if as_json:
            continue
        if len(given) > 1:
            print_heading(str(each))
        _print(found)
        if path is not None:
            print_line(f"wrote {path}")
    if as_json:
        print_json(documents if len(documents) > 1 else documents[0])


def _check_output(module: Module, given: Sequence[Path | str], output: Path | None) -> None:
    from compiler.cli.paths import check_writable
    from compiler.errors import OptionError
    from compiler.runtime.prediction import processing_of
    from compiler.support.image_files import SUFFIXES

    if output is None:
        return
    if processing_of(module).task != "detect":
        raise OptionError("--output is for pictures with boxes", "use --json, and redirect it to a file")
    if len(given) > 1:
        raise OptionError("--output is one file, and there are several pictures", "leave it out, or run one at a time")
    if output.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--output {output} is no picture", f"end its name in one of {', '.join(SUFFIXES)}")
    check_writable(output)


def _written(found: Prediction, given: Path | str, output: Path | None) -> Path | None:
    """The file with the picture and its boxes; None where there is none."""
    from compiler.runtime.prediction import Detections

    if not isinstance(found, Detections):
        return None
    source = Path(given)
    path = output if output is not None else Path(f"{source.stem}-boxes{source.suffix}")
    found.save(path)
    return path


def _print(found: Prediction) -> None:
    from compiler.cli.output import print_line, print_table
    from compiler.reports.formatting import plural
    from compiler.runtime.prediction import Classes, Detections, Vector

    if isinstance(found, Vector):
        shown = ", ".join(f"{each:.4f}" for each in found.values[:_NUMBERS])
        print_line(f"[{shown}, ...] ({len(found.values)} numbers; --json prints all)")
        return
    if not len(found):
        print_line("nothing was found")
        return
    rows: list[tuple[str, ...]]
    if isinstance(found, Detections):
        rows = [(each.name, f"{each.score:.3f}", *(f"{edge:.1f}" for edge in each.box)) for each in found]
        columns: Any = ("name", "score", "left", "top", "right", "bottom")
    elif isinstance(found, Classes):
        rows = [(each.name, f"{each.score:.3f}") for each in found]
        columns = ("name", "score")
    else:
        rows = [(f"{each.start:.2f} s", f"{each.end:.2f} s") for each in found]
        columns = ("from", "to")
        print_line(f"speech in {plural(len(rows), 'part')}")
    print_table(columns, rows, columns[1:])
