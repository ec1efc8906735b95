"""Kernels for processors with scalable vectors keep vectors of the length that their rules gave them.

Where a target has RISC-V's vector extension, TVM makes each vectorized loop one over registers of unknown length
with a mask, and a plain loop of what it cannot mask (a broadcast, a call), with variables that it then does not know.
The rules have described the machine's vectors already, and LLVM has code for fixed ones. So TVM lowers kernels
for the processor without the extension; code is generated with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tvm
from tvm import tirx

_SCALABLE = ("+v", "+zv")


def with_fixed_vectors(lower: Callable[[tvm.IRModule], tvm.IRModule]) -> Callable[[tvm.IRModule], tvm.IRModule]:
    """`lower`, which is not told of scalable vectors."""

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        hidden = {feature for target in _targets(mod) for feature in _scalable(target)}
        if not hidden:
            return lower(mod)
        fixed = _retargeted(mod, lambda names: [name for name in names if name not in hidden])
        with next(_targets(fixed)):
            result = lower(fixed)
        return _retargeted(result, lambda names: [*names, *sorted(hidden)])

    return lowered


def _targets(mod: tvm.IRModule) -> Iterator[tvm.target.Target]:
    functions = (function for _, function in mod.functions_items() if isinstance(function, tirx.PrimFunc))
    return (function.attrs["target"] for function in functions if function.attrs and "target" in function.attrs)


def _scalable(target: tvm.target.Target) -> list[str]:
    return [str(name) for name in target.attrs.get("mattr", ()) if str(name).startswith(_SCALABLE)]


def _retargeted(mod: tvm.IRModule, change: Callable[[list[str]], list[str]]) -> tvm.IRModule:
    """`mod` with the features of its functions' processors changed."""

    def changed(options: Mapping[str, Any]) -> dict[str, Any]:
        result = {**options, "mattr": change([str(name) for name in options.get("mattr", ())])}
        if "host" in options:
            result["host"] = changed(options["host"])
        return result

    functions = {
        var: function.with_attr("target", tvm.target.Target(changed(function.attrs["target"].export())))
        if isinstance(function, tirx.PrimFunc) and function.attrs and "target" in function.attrs
        else function
        for var, function in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)
