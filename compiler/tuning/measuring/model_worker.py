"""Times a whole module, and its kernels in it. A process of `python -m compiler.tuning.measuring.model_worker`.

A process serves one request: the placement of its weights in memory changes a module's time by a few per cent and is
fixed for the life of the process.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import ModelRequest, ModelSetup, ModelTimes

_MIN_RUNS = 5


def _handler(setup: ModelSetup) -> Callable[[Any], Any]:
    from compiler.profiling.profile import profile
    from compiler.profiling.workload import prepare
    from compiler.runtime import load

    module = load(setup.path)

    def handle(request: ModelRequest) -> ModelTimes:
        watched = profile(module, seconds=request.seconds, threads=setup.threads)
        kernels: dict[str, tuple[float, int]] = {}
        for kernel in watched.kernels:
            seconds, calls = kernels.get(kernel.name, (0.0, 0))
            kernels[kernel.name] = (seconds + kernel.seconds, calls + kernel.calls)
        workload = prepare(module, threads=setup.threads)
        clock = time.process_time if setup.threads == 1 else time.perf_counter
        run = workload.on_its_threads(lambda: _seconds_of_run(workload.run, clock, request.seconds))
        return ModelTimes(run, kernels)

    return handle


def _seconds_of_run(run: Callable[[], object], clock: Callable[[], float], seconds: float) -> float:
    run()
    run()
    gc.disable()  # a collection would distort the run in progress
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < _MIN_RUNS or time.perf_counter() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return median(times)


if __name__ == "__main__":
    serve(_handler)
