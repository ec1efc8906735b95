"""Never slower than in float: slower layers return to float, alone or with their neighbours.

By default times are predicted from the target's description. Measured ones are asked for; the whole model is then
compared with the float model too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from tvm.ir import IRModule

import targets
from compiler.compression.predicted_times import KernelTime, PredictedClock, is_calibrated
from compiler.compression.quantization.calibration import Array
from compiler.compression.quantization.layer_times import LayerTime, LayerTimes
from compiler.compression.quantization.precisions import MEASURED
from compiler.compression.quantization.regions import faster_in_float
from compiler.compression.quantization.session import Candidate, Session
from compiler.compression.report import time_text
from compiler.profiling.profile import profile
from compiler.profiling.timing import seconds_in_turns
from compiler.runtime import Module

# How much slower is within the noise of measuring: a share, and seconds.
_NOISE, _LEAST = 1.03, 2e-6
# How many times faster than measured floats are taken to be when the whole is still slower in integers.
_MARGINS = (1.25, 1.6, 2.5, float("inf"))


def speed_limit(
    session: Session, decide: str, target: targets.Target, build: Build, report: Callable[[str], None]
) -> SpeedLimit | None:
    """Limit that keeps a session from being slower than the float model; None where no times are known.

    That is a target that this machine cannot run, when times are measured, and one for which none are predicted.

    Args:
        decide: `precisions.PREDICTED` or `precisions.MEASURED`.
        build: compiles a module for the target.
    """
    if target.quantized_everywhere:
        return None
    if decide == MEASURED:
        return SpeedLimit(session, MeasuredClock(build), True, report) if target.fits_this_machine() else None
    return SpeedLimit(session, PredictedClock(target), False, report) if is_calibrated(target) else None


class SpeedLimit:
    """Holds a session's candidates to the time of the float model.

    Attributes:
        times: of the layers, by name.
    """

    def __init__(
        self, session: Session, clock: PredictedClock | MeasuredClock, measured: bool, report: Callable[[str], None]
    ) -> None:
        report("time layers" if measured else "predict times of layers")
        self._session, self._measured = session, measured
        self._timer = LayerTimes(clock, session.scheme.activations)
        layers = [layer for layer in session.quantizable if not layer.is_look_up]
        self.times: dict[str, LayerTime] = self._timer.measure(layers, session.rounded_weight)
        session.times = self.times
        self._margins = iter(_MARGINS if measured else ())
        self._leave(1.0)

    def tightened(self, found: Candidate, sample: Mapping[str, Array]) -> bool:
        """True if the candidate was measured to be slower than the float model, and layers were given up for that."""
        if not self._measured:
            return False
        modules = (self._session.float_module, found.module)
        runs = [partial(module.run, sample) for module in modules]
        floats, integers = seconds_in_turns(runs, threads=modules[0].threads)
        if integers <= floats * _NOISE + _LEAST:
            return False
        return any(self._leave(margin) for margin in self._margins)

    def _leave(self, margin: float) -> bool:
        """Leave layers in float; whether there were any."""
        layers = [layer for layer in self._session.quantizable if not layer.is_look_up]
        if margin == float("inf"):
            slower = layers
        else:
            times = self._within_noise() if self._measured else self.times
            slower = faster_in_float(self._session.graph, layers, times, self._timer.conversion, margin)
        for layer in slower:
            self._session.in_float[layer.name] = self._reason(layer.name)
        self._session.slower.update(layer.name for layer in slower)
        return bool(slower)

    def _within_noise(self) -> dict[str, LayerTime]:
        """The times, in favour of integers."""
        return {name: LayerTime(time.floats * _NOISE + _LEAST, time.integers) for name, time in self.times.items()}

    def _reason(self, name: str) -> str:
        time = self.times.get(name)
        if time is None or time.floats >= time.integers:
            return "faster in float with what is around it: converting costs more than integers gain"
        how = "measured on this machine" if self._measured else "predicted for the target"
        return f"slower in integers: {time_text(time.floats, time.integers)} ({how})"


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
        """Calls of a run of each module, in their order. Raises UserError and InternalError of compiling and
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
