"""Runs a notebook's cells one after another, as Jupyter would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def notebooks() -> dict[str, Path]:
    """Return all notebooks by name."""
    return {path.stem: path for path in Path(__file__).parent.glob("*.ipynb")}


def run(path: Path) -> Any:
    """Run a notebook's cells and return the Pillow image in their variable `picture`. Raises any error of a cell."""
    names: dict[str, Any] = {"__name__": path.stem}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)
    return names["picture"]
