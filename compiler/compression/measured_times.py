"""Measured kernel times on this machine, where the caller asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm.ir import IRModule

from compiler.compression.predicted_times import KernelTime
from compiler.profiling.profile import profile
from compiler.runtime import Module

_TURNS, _RUNS = 7, 5
Build = Callable[[IRModule], Module]


class MeasuredClock:
    """Times modules alternately, so that what slows the machine down for a while slows all; the shortest counts.

    Args:
        build: compiles a module for the target, which this machine can run.
    """

    def __init__(self, build: Build) -> None:
        self._build = build

    def __call__(self, mods: Sequence[IRModule]) -> list[list[KernelTime]]:
        """Of each module the calls of a run, in their order. Raises UserError and InternalError of compiling and
        profiling."""
        modules = [self._build(mod) for mod in mods]
        turns = [[profile(module, runs=_RUNS).calls for module in modules] for _ in range(_TURNS)]
        found = []
        for calls in zip(*turns, strict=True):
            seconds = np.array([[call.duration for call in turn] for turn in calls])
            least, middle = seconds.min(axis=0), np.median(seconds, axis=0)
            found.append(
                [
                    KernelTime(
                        call.kind, float(least[index]), float((middle[index] - least[index]) / max(least[index], 1e-9))
                    )
                    for index, call in enumerate(calls[0])
                ]
            )
        return found
