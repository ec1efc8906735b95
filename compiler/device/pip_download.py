"""Downloads distributions from PyPI with pip."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from compiler.errors import MissingDependencyError
from compiler.support.cache import FOLDER_VARIABLE, cache_folder

_TIMEOUT_SECONDS = 900


def pip_download(options: Sequence[str], folder: Path, what: str) -> None:
    """Download distributions, without their dependencies, into a folder.

    Args:
        options: the arguments of `pip download` that select them.
        folder: the destination.
        what: a description for the error message.

    Raises:
        MissingDependencyError: they could not be downloaded.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        problem = done.stderr.strip()[-500:] if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem is not None:
        raise MissingDependencyError(
            f"{what} could not be downloaded: {problem}",
            f"access to PyPI is needed once; downloads are cached in {cache_folder()} ({FOLDER_VARIABLE})",
        )
