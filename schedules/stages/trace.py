"""Schedules found by TVM's MetaSchedule, as knobs: a trace of schedule primitives in JSON.

A trace belongs to one kernel, so workloads that have this knob must tell kernels apart: see `digest`.
"""

from __future__ import annotations

import json
from typing import Any

import tvm_ffi

from schedules.config import KnobValue
from schedules.errors import NotScheduledError
from schedules.ir.stages import Kernel
from schedules.ir.tir import PrimFunc, s_tir, tvm


class Traces(tuple[KnobValue, ...]):
    """The choices of a knob that holds a trace: any text; "" is none, and the only one that is listed."""

    def __new__(cls) -> Traces:
        """There is but one such set of choices."""
        return super().__new__(cls, ("",))

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str)


def digest(function: PrimFunc) -> str:
    """Sixteen hexadecimal digits, equal for kernels that differ in names alone."""
    return f"{tvm_ffi.structural_hash(function.without_attr('global_symbol')) & (1 << 64) - 1:016x}"


def new_schedule(function: PrimFunc) -> s_tir.Schedule:
    """A `tvm.s_tir.Schedule` of a copy of a kernel, which is its module's "main".

    A copy, since TVM's schedule changes blocks of the function it is given in place.
    """
    module = tvm.IRModule({"main": s_tir.renew_defs(function).with_attr("global_symbol", "main")})
    return s_tir.Schedule(module, debug_mask="none", error_render_level="fast")


def traced_function(kernel: Kernel, trace: str) -> PrimFunc:
    """The kernel as the trace schedules it. Raises NotScheduledError when the trace does not fit it."""
    return traced_schedule(kernel, trace).mod["main"]


def traced_schedule(kernel: Kernel, trace: str) -> s_tir.Schedule:
    """The schedule that a trace leads to. Raises NotScheduledError when the trace does not fit the kernel."""
    schedule = new_schedule(kernel.function)
    try:
        s_tir.Trace.apply_json_to_schedule(json.loads(trace), schedule)
    except MemoryError:
        raise
    except Exception as error:  # TVM raises whatever its primitives raise
        raise NotScheduledError(f"the recorded trace does not fit the kernel: {error}") from error
    return schedule


def trace_text(schedule: s_tir.Schedule) -> str:
    """The trace of a schedule, for `traced_function`."""
    return json.dumps(_plain(schedule.trace.as_json()), separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A JSON value out of TVM's containers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if hasattr(value, "value"):
        return _plain(value.value)
    if hasattr(value, "items"):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value]
