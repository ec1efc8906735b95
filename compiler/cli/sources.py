"""A file of the command line as a module: loaded if it is one, compiled if it is a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.cli.arguments import divide_shapes, parse_arrays, parse_shapes, split_shapes
from compiler.cli.progress import Steps
from compiler.inspection.contents import is_module_file


@dataclass
class Prepared:
    """Inputs of a measurement.

    Attributes:
        source: the path of a module file, or a `Module`.
        inputs: the inputs given, by name; None when there are none.
        sizes: sizes of symbolic dimensions; None when none are given.
        trusted_keys: of a module file; None for a module that was compiled just now.
    """

    source: Any
    inputs: dict[str, Any] | None
    sizes: dict[str, int] | None
    trusted_keys: Sequence[Path] | None = None


def prepare(
    path: Path,
    target: str,
    shapes: Sequence[str] | None,
    inputs: Sequence[str] | None,
    threads: int | None,
    trusted_keys: Sequence[Path] | None = None,
) -> Prepared:
    """Compile a model for `target`, or take a module as it is; and read the inputs for it.

    Args:
        trusted_keys: a module must be signed by one of these; models are not signed.

    Raises:
        UserError: a file or an argument is at fault.
    """
    import compiler

    parsed = parse_shapes(shapes or [])
    source: Any = path
    if is_module_file(path):
        specs = compiler.load(path, trusted_keys=trusted_keys or None).inputs
    else:
        from compiler.inspection.model_inspection import model_inputs  # loads TVM

        trusted_keys = None
        # Sizes of inputs shape the compilation; sizes of dimensions that stay dynamic are for the run.
        names = {each.name for each in model_inputs(path)} if parsed else set()
        fixed, sizes = divide_shapes(parsed, names)
        parsed = {name: (size,) for name, size in sizes.items()}
        with Steps() as steps:
            source = compiler.compile(path, target, shapes=fixed or None, threads=threads, progress=steps)
        specs = source.inputs
    arrays = parse_arrays(inputs or [], "--input", {spec.name: spec for spec in specs})
    return Prepared(source, arrays or None, split_shapes(parsed, specs) or None, trusted_keys or None)
