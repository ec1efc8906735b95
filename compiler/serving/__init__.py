"""Serving: requests to compiled modules, batched, cached and routed, behind one ASGI application.

Everything that answers requests is a `Service`, and what wraps one (a batcher, a cache, a router, a cascade) is a
service itself, so they compose. Nothing here loads the compiler or torch; the parts that need the compiler (`split`)
load it on use.
"""

from __future__ import annotations
