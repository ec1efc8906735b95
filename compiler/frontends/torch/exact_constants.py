"""Patterns of onnxscript's optimizer that match the constants they name, and no others.

They match within 1e-8 and 1e-5 of the value, so that `x + 1e-8` is taken for `x + 0` and removed: a division by it is
then one by zero. `x * 1.00001` is taken for `x * 1`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from types import SimpleNamespace

_ROUNDING = 1e-7  # float32 rounding error: patterns store 1/6 in float32


@contextlib.contextmanager
def exact_constants() -> Iterator[bool]:
    """Match constants exactly inside the context; yields False for a version of onnxscript that matches elsewhere."""
    try:
        matcher = importlib.import_module("onnxscript.rewriter._matcher")
    except ImportError:
        matcher = None
    if getattr(matcher, "math", None) is not math:
        yield False
        return
    matcher.math = SimpleNamespace(**{**vars(math), "isclose": _is_close})  # type: ignore[union-attr]
    try:
        yield True
    finally:
        matcher.math = math  # type: ignore[union-attr]


def _is_close(found: float, wanted: float, *, rel_tol: float = 0.0, abs_tol: float = 0.0) -> bool:
    """Equality up to the rounding of float32."""
    return math.isclose(found, wanted, rel_tol=min(rel_tol, _ROUNDING))
