"""The table of operators that compute on blocked values."""

from __future__ import annotations

from collections.abc import Callable

from compiler.passes.layout.values import Blocked, LayoutBuilder, Value
from compiler.passes.rewriting.graph import Call

Answer = Blocked | Value | None
Handler = Callable[[LayoutBuilder, Call], Answer]

HANDLERS: dict[str, Handler] = {}

ANCHORS = frozenset(f"relax.nn.conv{rank}d{kind}" for rank in (1, 2, 3) for kind in ("", "_transpose"))
"""Operators that start a blocked region; a function without one is left as it is."""


NARROW_READERS = frozenset(
    {
        *(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)),
        *(f"relax.nn.{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        *(f"relax.nn.adaptive_{kind}_pool{rank}d" for kind in ("max", "avg") for rank in (1, 2, 3)),
        "relax.concat",
    }
)
"""Operators whose handlers read blocked floats stored as bfloat16 as they are."""


def handles(*operators: str) -> Callable[[Handler], Handler]:
    """Register what is done with calls of `operators`. A handler answers with the result's blocked form (or with a
    Value), or None: then the operator runs on plain operands."""

    def register(handler: Handler) -> Handler:
        for operator in operators:
            HANDLERS[operator] = handler
        return handler

    return register
