"""The door to the engine: import this before `tvm`.

`import tvm` imports torch when it is installed (2 s of CPU that no compilation needs, and threads that disturb
measurements). The engine works the same without it, and torch can still be imported afterwards.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_hidden() -> Iterator[None]:
    """Make `import torch` fail inside the block, unless torch is loaded already (then nothing is to be saved)."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


with torch_hidden():
    importlib.import_module("tvm")
