"""Serving of compiled modules in one ASGI application, with batching, caching and routing.

Everything that answers requests is a `Service`, and its wrappers (a batcher, a cache, a router, a cascade) are services
too, so they compose. Nothing here loads the compiler or torch; the parts that need the compiler (`split`) load it on
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compiler.serving.caches.semantic_calibration import calibrate_semantic_cache
    from compiler.serving.policies.cascade_calibration import calibrate_cascade

# Loaded on use, so that importing the service interface loads nothing else.
_HOME = {
    "calibrate_cascade": "compiler.serving.policies.cascade_calibration",
    "calibrate_semantic_cache": "compiler.serving.caches.semantic_calibration",
}

__all__ = ["calibrate_cascade", "calibrate_semantic_cache"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
