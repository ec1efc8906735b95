"""Checks the paths that a command is given, before any work; they load neither TVM nor a model."""

from __future__ import annotations

import os
from pathlib import Path

from compiler.errors import ArtifactError, OptionError, StorageError


def check_is_module(path: Path) -> None:
    """Tell a model from a module, for commands that take modules only.

    Raises:
        ArtifactError: it is a model: a file, or a folder with a config.json.
        StorageError: it does not exist.
    """
    if not path.exists():
        from compiler.frontends.file_types import missing_file_hint

        raise StorageError(f"no such module: {path}", missing_file_hint(path))
    if path.suffix in {".onnx", ".pt2"}:
        from compiler.inspection.contents import is_module_file

        is_model = not is_module_file(path)
    else:
        is_model = (path / "config.json").exists()
    if is_model:
        raise ArtifactError(
            f"{path} is a model, not a compiled module", f"compile it first: tensorwright compile {path}"
        )


def check_writable(path: Path, option: str = "--output") -> None:
    """Check that a file can be written, before minutes of work.

    Raises:
        StorageError: the path is a folder, or its folder is missing or read-only.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder", f"give the name of a file in it: {option} {path / 'NAME'}")
    folder = path.parent
    if not folder.is_dir():
        raise StorageError(f"the folder {folder} does not exist", f"make it, or write elsewhere with {option}")
    if not os.access(folder, os.W_OK):
        raise StorageError(f"the folder {folder} cannot be written", f"write elsewhere with {option}")


def check_report(path: Path | None, suffixes: tuple[str, ...]) -> None:
    """Check that a report can be written, before minutes of work; None stands for no report.

    Raises:
        OptionError: its name does not end in one of `suffixes`.
        StorageError: as of `check_writable`.
    """
    if path is None:
        return
    if path.suffix not in suffixes:
        raise OptionError(f"{path}: the name of this file must end in {' or '.join(suffixes)}")
    check_writable(path, "--report")


def check_writable_folder(folder: Path) -> None:
    """Check that a folder can be written, before minutes of work.

    Raises:
        StorageError: it is a file, or it or the folder it would be made in is read-only.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file, not a folder", "give another --output")
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not os.access(existing, os.W_OK):
        raise StorageError(f"the folder {existing} cannot be written", "give another --output")
