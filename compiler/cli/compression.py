"""The common part of the commands that compress a model: reading inputs, writing results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def compress_to_file(
    technique: Callable[..., Any],
    model: Path,
    *,
    samples: Sequence[Path] | None,
    output: Path | None,
    report: Path | None,
    target: str,
    shape: Sequence[str] | None,
    constant: Sequence[str] | None,
    threads: int | None,
    as_json: bool,
    precisions: Path | None = None,
    **settings: Any,
) -> None:
    """Run `technique` with the options of the command and its `settings`, compile, write, and print the report.

    Args:
        precisions: a file for those of `quantize`.
    """
    import compiler
    from compiler.cli.arguments import load_archive, parse_arrays, parse_shapes
    from compiler.cli.output import print_json, print_line
    from compiler.cli.progress import Steps
    from compiler.inspection.model_inspection import model_inputs
    from compiler.inspection.summary import check_report, check_writable

    path = output if output is not None else Path(model.with_suffix(".twm").name)
    check_writable(path)
    check_report(report, (".html", ".json"))
    check_report(precisions, (".json",))
    specs = {each.name: each for each in model_inputs(model)} if constant else {}
    with Steps() as steps:
        smaller = technique(
            model,
            calibration=[load_archive(each, "--samples") for each in samples] if samples else None,
            target=target,
            shapes=parse_shapes(list(shape or [])) or None,
            constants=parse_arrays(list(constant or []), "--constant", specs) or None,
            threads=threads,
            progress=steps,
            **settings,
        )
        compiler.compile(smaller, target, threads=threads, progress=steps).export(path)
    if report is not None:
        smaller.report.save(report)
    if precisions is not None:
        smaller.report.save_precisions(precisions)
    if as_json:
        print_json({"path": str(path), **smaller.report.to_dict()})
        return
    print_line(str(smaller.report))
    print_line(f"wrote {path}")
