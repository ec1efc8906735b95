"""Functions on the shape heap, which compute sizes: what `lower-shapes` leaves of them."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import IRModule

_HOST = "tirx.is_host_func"


def is_shape_function(function: tirx.PrimFunc) -> bool:
    """True if a function computes on the shape heap."""
    return bool(function.attrs and _HOST in function.attrs)


def rewrite_shape_functions(mod: IRModule, rewrite: Callable[[tirx.PrimFunc], tirx.PrimFunc | None]) -> IRModule:
    """The module with each function on the shape heap replaced by what `rewrite` makes of it; None leaves it."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and is_shape_function(function):
            rewritten = rewrite(function)
            if rewritten is not None:
                changed[variable] = rewritten
    return IRModule({**dict(mod.functions_items()), **changed}, mod.attrs, mod.global_infos) if changed else mod
