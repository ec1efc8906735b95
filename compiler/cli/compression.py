"""The common part of the commands that compress a model: reading inputs, writing results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol


class CompressionOptions(Protocol):
    """The options that all commands have which compress a model."""

    @property
    def model(self) -> Path: ...
    @property
    def samples(self) -> list[Path] | None: ...
    @property
    def output(self) -> Path | None: ...
    @property
    def report(self) -> Path | None: ...
    @property
    def target(self) -> str: ...
    @property
    def shape(self) -> list[str] | None: ...
    @property
    def constant(self) -> list[str] | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def as_json(self) -> bool: ...


def compress_to_file(
    technique: Callable[..., Any], given: CompressionOptions, precisions: Path | None = None, **settings: object
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

    path = given.output if given.output is not None else Path(given.model.with_suffix(".twm").name)
    check_writable(path)
    check_report(given.report, (".html", ".json"))
    check_report(precisions, (".json",))
    specs = {each.name: each for each in model_inputs(given.model)} if given.constant else {}
    with Steps() as steps:
        smaller = technique(
            given.model,
            calibration=[load_archive(each, "--samples") for each in given.samples] if given.samples else None,
            target=given.target,
            shapes=parse_shapes(given.shape or []) or None,
            constants=parse_arrays(given.constant or [], "--constant", specs) or None,
            threads=given.threads,
            progress=steps,
            **settings,
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
