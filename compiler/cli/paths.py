"""Check the paths given to a command before any work, without loading TVM or a model; and prepare a file of the command
line as a module: loaded if it is one, compiled if it is a model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compiler
from compiler.cli.arguments import divide_shapes, parse_arrays, parse_shapes, split_shapes
from compiler.cli.progress import Steps
from compiler.errors import ArtifactError, OptionError, StorageError
from compiler.inspection.contents import is_module_file


def check_is_module(path: Path) -> None:
    """Check that a file is a module, for commands that accept only modules.

    Raises:
        ArtifactError: it is a model file, or a folder with a config.json.
        StorageError: it does not exist.
    """
    if not path.exists():
        from compiler.support.model_files import missing_file_hint

        raise StorageError(f"no such module: {path}", missing_file_hint(path))
    is_model = not is_module_file(path) if path.suffix in {".onnx", ".pt2"} else (path / "config.json").exists()
    if is_model:
        raise ArtifactError(
            f"{path} is a model, not a compiled module", f"compile it first: tensorwright compile {path}"
        )


def check_writable(path: Path, option: str = "--output") -> None:
    """Check that a file can be written, before long work. Raises StorageError if the path is a folder, or its folder is
    missing or read-only."""
    if path.is_dir():
        raise StorageError(f"{path} is a folder", f"give the name of a file in it: {option} {path / 'NAME'}")
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"the folder {folder} does not exist", f"make it, or write elsewhere with {option}")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"the folder {folder} cannot be written", f"write elsewhere with {option}")


def check_report(path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Check that a report can be written, before long work; None for no report. Raises OptionError if its name does not
    end in one of `suffixes`, and StorageError like `check_writable`."""
    if path is None:
        return
    if path.suffix not in suffixes:
        raise OptionError(f"{path}: the name of this file must end in {' or '.join(suffixes)}")
    check_writable(path, "--report")


def check_writable_folder(folder: Path) -> None:
    """Check that a folder can be written, before long work. Raises StorageError if it is a file, or it or its parent
    folder is read-only."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file, not a folder", "give another --output")
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not os.access(existing, os.W_OK):
        raise StorageError(f"the folder {existing} cannot be written", "give another --output")


@dataclass
class Prepared:
    """Inputs of a measurement.

    Attributes:
        source: the path of a module file, or a `Module`.
        inputs: the inputs given, by name; None when there are none.
        sizes: sizes of symbolic dimensions; None when none are given.
        trusted_keys: keys to verify a module file with; None for a newly compiled module.
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
    """Compile a model for `target`, or use a module as it is, and read its inputs. Raises UserError if a file or an
    argument is at fault. `trusted_keys`: a module must be signed by one of these; models are not signed."""

    parsed = parse_shapes(shapes or [])
    source: Any = path
    if is_module_file(path):
        specs = compiler.load(path, trusted_keys=trusted_keys or None).inputs
    else:
        from compiler.inspection.model_inspection import model_inputs  # loads TVM

        trusted_keys = None
        # Input shapes affect compilation; sizes of dynamic dimensions apply to the run.
        names = {each.name for each in model_inputs(path)} if parsed else set()
        fixed, sizes = divide_shapes(parsed, names)
        parsed = {name: (size,) for name, size in sizes.items()}
        with Steps() as steps:
            source = compiler.compile(path, target, shapes=fixed or None, threads=threads, progress=steps)
        specs = source.inputs
    arrays = parse_arrays(inputs or [], "--input", {spec.name: spec for spec in specs})
    return Prepared(source, arrays or None, split_shapes(parsed, specs) or None, trusted_keys or None)
