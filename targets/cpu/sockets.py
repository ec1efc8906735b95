"""Servers of a processor with many cores: how many there are, and what all of them draw from memory.

A preset's `memory_rate` is what a few cores draw. Where they were measured, `core_memory_rate` is what one core draws
alone, and `chiplet` what cores that share a link to memory draw together: on Zen 4 25 to 27 GB/s with one core and 46
with two, at 3.65 GHz (Zen 4 server, reads of 1 GiB); on Skylake and Cascade Lake 12 GB/s with one thread by STREAM, and
199 stated for two sockets (https://www.anandtech.com/show/11544). `socket` has the most cores of a processor of that
kind, and the rate of all its memory channels: 0.7 of the peak that the vendor states (as the presets' own rates) at
3 GHz.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schedules.ir.numbers import ceil_div

_FEW = 4
_SOCKETS = 2


def most_cores(entry: Mapping[str, Any]) -> int | None:
    """The most cores of a machine of a preset: of two sockets, or of a board; None where not known."""
    if "socket" in entry:
        return _SOCKETS * int(entry["socket"]["cores"])
    return entry["machine"].get("cores")


def memory_rate(entry: Mapping[str, Any], cores: int) -> dict[str, float]:
    """`memory_rate` of a preset's machine with a number of cores, as a keyword of `Machine`."""
    few = entry["machine"].get("memory_rate")
    if few is None or "socket" not in entry:
        return {} if few is None else {"memory_rate": few}
    core, chiplet, socket = entry.get("core_memory_rate"), entry.get("chiplet"), entry["socket"]
    limits = [few * max(cores, _FEW) / _FEW if core is None else core * cores]
    if chiplet is not None:
        limits.append(chiplet["memory_rate"] * max(1.0, cores / chiplet["cores"]))
    limits.append(max(few, ceil_div(cores, socket["cores"]) * socket["memory_rate"]))
    return {"memory_rate": min(limits)}
