"""Every notebook of the gallery runs, and ends in a picture."""

from __future__ import annotations

import subprocess
import sys

import pytest

from examples.gallery.running import notebooks

# A process each: the notebook on text replaces onnxruntime for the whole process. An empty picture has one or two
# levels of gray, a waveform over marked stretches four.
_PROGRAM = """
import sys
from examples.gallery.running import notebooks, run
picture = run(notebooks()[sys.argv[1]])
assert min(picture.size) >= 150 and len(set(picture.convert("L").tobytes())) > 3
"""


@pytest.mark.parametrize("name", sorted(notebooks()))
def test_notebooks_run(name: str) -> None:
    pytest.importorskip("PIL")
    subprocess.run([sys.executable, "-c", _PROGRAM, name], check=True, timeout=900)
