"""Folders of tuning records: the user's own, and the one that ships with the package."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

USER_FOLDER = "TENSORWRIGHT_RECORDS"
"""Environment variable: the folder of the user's records."""
PRETRAINED = "cost_model-{architecture}.ubj"


def user_folder() -> Path:
    """The folder that `tune` writes and `compile` reads by default."""
    chosen = os.environ.get(USER_FOLDER)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(base) / "tensorwright" / "tuning"


def shipped_folder() -> Path:
    """The records that ship with the package."""
    return Path(str(resources.files("tuning_logs")))


def pretrained_model(architecture: str) -> Path | None:
    """The cost model shipped for processors of an architecture, if any: configs that are fast on others may not fit the
    registers of these."""
    path = shipped_folder() / PRETRAINED.format(architecture=architecture)
    return path if path.is_file() else None
