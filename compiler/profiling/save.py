"""Write a profile to files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact.storage import write_atomically
from compiler.errors import StorageError
from compiler.profiling.chrome_trace import chrome_trace
from compiler.profiling.profile_page import profile_page

if TYPE_CHECKING:
    from compiler.profiling.measured import Profile


def save_profile(profile: Profile, folder: Path, beside: Profile | Mapping[str, Any] | None = None) -> dict[str, Path]:
    """Write `profile.json`, `trace.json` and `profile.html` into a folder, each whole or not at all.

    Raises:
        StorageError: the folder cannot be made or a file not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder {folder} cannot be made: {error.strerror or error}", "choose another --output"
        ) from error
    contents = {
        "profile": ("profile.json", json.dumps(profile.to_dict(), indent=2, allow_nan=False)),
        "trace": ("trace.json", json.dumps(chrome_trace(profile), allow_nan=False)),
        "page": ("profile.html", profile_page(profile, beside)),
    }
    paths = {}
    for key, (name, text) in contents.items():
        paths[key] = folder / name
        write_atomically(paths[key], [text.encode("utf-8")])
    return paths
