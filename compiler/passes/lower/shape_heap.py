"""Functions on the shape heap, as `lower-shapes` produces them, and runtime calls on shapes: names and argument codes.

A match takes a tensor, the shape heap, the rank, then (code, value) for each dimension, and a context; a shape is made
of the heap, the rank, and (code, value) for each dimension.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.tirx import IntImm

from schedules.ir.tvm_types import Call, Expr

_HOST = "tirx.is_host_func"


def is_shape_function(function: tirx.PrimFunc) -> bool:
    """True if a function computes on the shape heap."""
    return bool(function.attrs and _HOST in function.attrs)


def rewrite_shape_functions(mod: IRModule, rewrite: Callable[[tirx.PrimFunc], tirx.PrimFunc | None]) -> IRModule:
    """Replace each function on the shape heap by the result of `rewrite`; None keeps it."""
    changed = {}
    for variable, function in mod.functions_items():
        if isinstance(function, tirx.PrimFunc) and is_shape_function(function):
            rewritten = rewrite(function)
            if rewritten is not None:
                changed[variable] = rewritten
    return IRModule({**dict(mod.functions_items()), **changed}, mod.attrs, mod.global_infos) if changed else mod


MAKE_SHAPE = "vm.builtin.make_shape"
MATCH_SHAPE = "vm.builtin.match_shape"
CHECK_TYPE = "vm.builtin.check_tensor_info"
ALLOCATE_HEAP = "vm.builtin.alloc_shape_heap"

_FIRST_CODE_OF_MATCH, _FIRST_CODE_OF_SHAPE = 3, 2
EQUALS_NUMBER, STORES, EQUALS_PLACE = 0, 1, 3  # action of a match on a dimension
IS_NUMBER, IS_PLACE = 0, 1  # kind of a dimension of a shape

Dimension = tuple[int | None, int | None]
"""A code and its value: a number, or a position on the heap."""


def called(call: Expr) -> str | None:
    """Return the name of the runtime function that a call invokes; None for everything else."""
    if not isinstance(call, relax.Call):
        return None
    name = getattr(call.op, "name", "")
    callee = call.args[0] if name == "relax.call_builtin_with_ctx" else call.op
    return str(callee.global_symbol) if isinstance(callee, relax.ExternFunc) else None


def matched(call: Call) -> list[Dimension]:
    """Return a match's action on each dimension."""
    return _pairs(call.args[_FIRST_CODE_OF_MATCH:-1])


def made(call: Call) -> list[Dimension]:
    """Return the kind of each dimension of a shape."""
    return _pairs(call.args[_FIRST_CODE_OF_SHAPE:])


def number(expression: Expr) -> int | None:
    """Return the integer value of an argument."""
    value = getattr(expression, "value", expression)
    return int(value) if isinstance(value, int | IntImm) else None


def _pairs(arguments: list[Expr]) -> list[Dimension]:
    numbers = [number(each) for each in arguments]
    return list(zip(numbers[::2], numbers[1::2], strict=True))
