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


def show_ranking(module: Module, query: str, texts: Sequence[str], as_json: bool) -> None:
    """Print texts by how well they answer a query, the best first. Raises as `Module.rank`."""
    from compiler.cli.output import print_json, print_table

    found = module.rank(query, texts)
    if as_json:
        print_json(found.to_dict())
    else:
        rows = [(f"{each.score:.4f}", str(each.place + 1), each.text) for each in found]
        print_table(("score", "place", "text"), rows, ("score", "place"))


def _check_output(module: Module, given: Sequence[Path | str], output: Path | None) -> None:
    from compiler.cli.paths import check_writable
    from compiler.errors import OptionError
    from compiler.runtime.prediction import processing_of
    from compiler.support.media_files import SUFFIXES

    if output is None:
        return
    if processing_of(module).task not in ("detect", "segment"):
        raise OptionError("--output is for pictures with boxes or masks", "use --json, and redirect it to a file")
    if len(given) > 1:
        raise OptionError("--output is one file, and there are several pictures", "leave it out, or run one at a time")
    if output.suffix.lower() not in SUFFIXES:
        raise OptionError(f"--output {output} is no picture", f"end its name in one of {', '.join(SUFFIXES)}")
    check_writable(output)


def _written(found: Prediction, given: Path | str, output: Path | None) -> Path | None:
    """The file with the picture and its boxes or mask; None where there is none."""
    from compiler.runtime.prediction import Detections, Segmentation

    if not isinstance(found, Detections | Segmentation):
        return None
    source = Path(given)
    what = "boxes" if isinstance(found, Detections) else "mask"
    path = output if output is not None else Path(f"{source.stem}-{what}{source.suffix}")
    found.save(path)
    return path


def _print(found: Prediction) -> None:
    from compiler.cli.output import print_line, print_table
    from compiler.reports.formatting import format_percent, plural
    from compiler.runtime.prediction import Classes, Detections, Segmentation, Text, Vector

    if isinstance(found, Text):
        print_line(f"{found} ({found.score:.3f})")
        return
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
    elif isinstance(found, Segmentation):
        rows = [(each.name, format_percent(each.share)) for each in found]
        columns = ("name", "share of the picture")
    elif isinstance(found, Classes):
        rows = [(each.name, f"{each.score:.3f}") for each in found]
        columns = ("name", "score")
    else:
        rows = [(f"{each.start:.2f} s", f"{each.end:.2f} s") for each in found]
        columns = ("from", "to")
        print_line(f"speech in {plural(len(rows), 'part')}")
    print_table(columns, rows, columns[1:])
