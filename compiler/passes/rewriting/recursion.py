"""True if any Relax function is (mutually) recursive; ONNX loops are imported that way."""

from __future__ import annotations

import tvm
from tvm import relax

from compiler.passes.rewriting.substitution import called_functions


def loops(mod: tvm.IRModule) -> bool:
    """True if a Relax function of the module calls itself, directly or through others."""
    calls = {
        variable.name_hint: {callee.name_hint for callee in called_functions(function.body)}
        for variable, function in mod.functions_items()
        if isinstance(function, relax.Function)
    }
    return any(name in _reached(calls, name) for name in calls)


def _reached(calls: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(calls[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting.extend(calls.get(name, ()))
    return reached
