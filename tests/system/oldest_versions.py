"""Prints pip constraints that pin each dependency in pyproject.toml to the oldest version it allows.

python tests/system/oldest_versions.py > constraints.txt && pip install -c constraints.txt -e '.[peers,dev]'
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
_FLOOR = re.compile(r'"([A-Za-z0-9_.-]+)\s*(?:>=|==)\s*([0-9][^",;\s]*)"')
_TABLES = ("[project]", "[project.optional-dependencies]")


def oldest_versions(text: str) -> Iterator[tuple[str, str]]:
    """(name, version) of each requirement; a regular expression does, since Python 3.10 has no tomllib."""
    table = ""
    for line in text.splitlines():
        if line.startswith("["):
            table = line.strip()
        if table in _TABLES and not line.startswith("requires-python"):
            yield from _FLOOR.findall(line.partition("#")[0])


if __name__ == "__main__":
    # Arm's tools are exact pins that contradict each other's neighbours: tests/ethos_u_tools.txt.
    exact = ("ethos-u-vela", "tosa-tools")
    sys.stdout.writelines(
        f"{name}=={version}\n" for name, version in oldest_versions(_PYPROJECT.read_text()) if name not in exact
    )
