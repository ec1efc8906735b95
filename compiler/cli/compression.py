"""The common part of the commands that compress a model: reading inputs, writing results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import compiler
from compiler.cli.arguments import load_archives, parse_imports
from compiler.cli.options import CompressionOptions, keywords_of
from compiler.cli.output import print_json, print_line
from compiler.cli.progress import Steps


def compress_to_file(technique: Callable[..., Any], given: CompressionOptions, precisions: Path | None = None) -> None:
    """Run `technique` with the options of the command, compile, write, and print the report. `precisions`: file for the
    precisions chosen by `quantize`."""
    from compiler.cli.paths import check_report, check_writable

    path = given.output if given.output is not None else Path(given.model.with_suffix(".twm").name)
    check_writable(path)
    check_report(given.report, (".html", ".json"))
    check_report(precisions, (".json",))
    imports = parse_imports(given.model, given)
    with Steps() as steps:
        smaller = technique(
            given.model,
            **keywords_of(technique, given, calibration=load_archives(given.samples, "--samples"), progress=steps),
            **imports,
        )
        compiler.compile(smaller, given.target, threads=given.threads, progress=steps).export(path)
    if given.report is not None:
        smaller.report.save(given.report)
    if precisions is not None:
        smaller.report.save_precisions(precisions)
    if given.as_json:
        print_json({"path": str(path), **smaller.report.to_dict()})
        return
    print_line(str(smaller.report))
    print_line(f"wrote {path}")


def variants_to_folder(
    given: CompressionOptions, folder: Path, variants: Sequence[str] | None, **settings: Any
) -> None:
    """Write variants of a model into a folder, and print the accuracy and cost of each."""
    from compiler.compression.variants import DEFAULT

    imports = parse_imports(given.model, given)
    requested = {}
    for each in variants or DEFAULT:
        name, _, recipe = each.partition("=")
        requested[name] = recipe or name
    with Steps() as steps:
        written = compiler.write_variants(
            given.model,
            folder,
            requested,
            calibration=load_archives(given.samples, "--samples"),
            target=given.target,
            threads=given.threads,
            progress=steps,
            **imports,
            **settings,
        )
    if given.as_json:
        print_json(written.to_dict())
        return
    print_line(str(written))
    print_line(f"wrote {folder}")
