"""Keep torch out of an import that would load it needlessly.

`import tvm_ffi`, and so `import tvm`, imports torch when it is installed: 2 s of CPU that no compilation and no run
needs, and threads that disturb measurements. TVM works the same without it, and torch can still be imported
afterwards. Nothing of TVM is loaded here, so the runtime on a device can use it too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def torch_hidden() -> Iterator[None]:
    """Make `import torch` fail inside the block, unless torch is already loaded (nothing to save then)."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]
