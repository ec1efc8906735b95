"""Tensors that a kernel gathers from (embedding tables)."""

from __future__ import annotations

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)

import tvm  # isort: skip
from tvm import tirx  # isort: skip

from schedules.ir.expression import buffers_loaded


def gathered_parameters(function: tirx.PrimFunc) -> frozenset[int]:
    """The positions of the parameters that are only gathered from."""
    looked_up: set[int] = set()
    otherwise: set[int] = set()
    for load in buffers_loaded(function.body):
        position = next((at for at, each in enumerate(function.params) if each.same_as(load.source)), None)
        if position is not None:
            (looked_up if any(map(buffers_loaded, load.indices)) else otherwise).add(position)
    return frozenset(looked_up - otherwise)


def gathered_by_kernel(mod: tvm.IRModule) -> dict[str, frozenset[int]]:
    """The positions by the name of the kernel, of those that have any."""
    found = {
        str(variable.name_hint): gathered_parameters(function)
        for variable, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return {name: positions for name, positions in found.items() if positions}
