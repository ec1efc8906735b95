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
    **settings: object,
) -> None:
    """Run `technique` with the options of the command and its `settings`, compile, write, and print the report.

    Args:
        precisions: a file for those of `quantize`.
    """
    import compiler
    from compiler.cli.arguments import load_archive, parse_arrays, parse_shapes
    from compiler.cli.output import print_json, print_line
    from compiler.cli.paths import check_report, check_writable
    from compiler.cli.progress import Steps
    from compiler.inspection.model_inspection import model_inputs

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


def variants_to_folder(
    model: Path,
    folder: Path,
    variants: Sequence[str] | None,
    *,
    samples: Sequence[Path] | None,
    shape: Sequence[str] | None,
    constant: Sequence[str] | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write variants of a model into a folder, and print the accuracy and cost of each."""
    import compiler
    from compiler.cli.arguments import load_archive, parse_arrays, parse_shapes
    from compiler.cli.output import print_json, print_line
    from compiler.cli.progress import Steps
    from compiler.compression.variants import DEFAULT
    from compiler.inspection.model_inspection import model_inputs

    specs = {each.name: each for each in model_inputs(model)} if constant else {}
    wanted = {}
    for each in variants or DEFAULT:
        name, _, recipe = each.partition("=")
        wanted[name] = recipe or name
    with Steps() as steps:
        written = compiler.write_variants(
            model,
            folder,
            wanted,
            calibration=[load_archive(each, "--samples") for each in samples] if samples else None,
            shapes=parse_shapes(list(shape or [])) or None,
            constants=parse_arrays(list(constant or []), "--constant", specs) or None,
            progress=steps,
            **settings,
        )
    if as_json:
        print_json(written.to_dict())
        return
    print_line(str(written))
    print_line(f"wrote {folder}")
