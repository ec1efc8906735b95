"""A file of the command line as a module: loaded if it is one, compiled if it is a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.cli.arguments import divide_shapes, parse_arrays, parse_shapes, split_shapes
from compiler.cli.progress import Steps
from compiler.profiling.inspection import is_module_file
from compiler.profiling.model_inspection import model_inputs


@dataclass
class Prepared:
    """What a measurement needs.

    Attributes:
        source: the path of a module file, or a `Module`.
        inputs: the inputs given, by name; None when there are none.
        sizes: of symbolic dimensions; None when none are given.
    """

    source: Any
    inputs: dict[str, Any] | None
    sizes: dict[str, int] | None


def prepare(
    path: Path, target: str, shapes: Sequence[str] | None, inputs: Sequence[str] | None, threads: int | None
) -> Prepared:
    """Compile a model for `target`, or take a module as it is; and read the inputs for it.

    Raises:
        UserError: a file or an argument is at fault.
    """
    import compiler

    parsed = parse_shapes(shapes or [])
    source: Any = path
    if is_module_file(path):
        specs = compiler.load(path).inputs
    else:
        # Sizes of inputs shape the compilation; sizes of dimensions that stay open are for the run.
        names = {each.name for each in model_inputs(path)} if parsed else set()
        fixed, sizes = divide_shapes(parsed, names)
        parsed = {name: (size,) for name, size in sizes.items()}
        with Steps() as steps:
            source = compiler.compile(path, target, shapes=fixed or None, threads=threads, progress=steps)
        specs = source.inputs
    arrays = parse_arrays(inputs or [], "--input", {spec.name: spec for spec in specs})
    return Prepared(source, arrays or None, split_shapes(parsed, specs) or None)
