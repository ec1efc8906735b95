"""CUDA graphs where there is no device: TVM's two functions for them, as its CUDA runtime has them, simulated.

A graph launches its kernels on the memory that it was recorded with, whatever the caller hands over later; so does the
simulation, so that a function which should not have been recorded gives wrong numbers here too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

ALLOCATE = "vm.builtin.cuda_graph.get_cached_alloc"
RUN = "vm.builtin.cuda_graph.run_or_capture"
_INVOKE = "vm.builtin.invoke_closure"


@cache
def simulate_graphs() -> None:
    """Make the functions known. Not for a process that will load TVM's CUDA runtime, which brings its own."""
    import tvm_ffi

    invoke = tvm_ffi.get_global_func(_INVOKE)
    kept: dict[Any, Any] = {}

    def allocate(machine: object, function: object, entry: int) -> Any:
        key = (_address(machine), "memory", int(entry))
        if key not in kept:
            kept[key] = invoke(machine, function)
        return kept[key]

    def run(machine: Any, function: Any, arguments: Any, entry: int, *sizes: Any) -> Any:
        key = (_address(machine), "graph", int(entry), tuple(tuple(each) for each in sizes))
        recorded = kept.setdefault(key, arguments)
        return invoke(machine, function, *recorded)

    tvm_ffi.register_global_func(ALLOCATE, allocate)
    tvm_ffi.register_global_func(RUN, run)


def _address(machine: object) -> Any:
    return getattr(machine, "value", machine)
