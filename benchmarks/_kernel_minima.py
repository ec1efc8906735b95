"""The shortest time of each kernel of a module, in milliseconds of a run, as JSON on stdout.

python -m benchmarks._kernel_minima MODULE THREADS SECONDS
"""

from __future__ import annotations

import gc
import json
import sys
import time

from compiler.profiling.instrument import Recording, call_times, record
from compiler.profiling.profile import named_calls
from compiler.profiling.workload import prepare


def main(path: str, threads: str, seconds: str) -> None:
    """Print the fastest run of each call of each kernel, to exclude other load on the machine."""
    workload = prepare(path, threads=int(threads))

    def watched() -> Recording:
        workload.run()
        end = time.perf_counter() + float(seconds)
        gc.disable()
        return record(workload.set_instrument, workload.run, lambda done: done < 5 or time.perf_counter() < end)

    recording = workload.on_its_threads(watched)
    shortest = 1e3 * call_times(recording).own.min(axis=0)
    minima: dict[str, float] = {}
    for name, each in zip(named_calls(recording.calls, workload.module.manifest.calls), shortest, strict=True):
        minima[name.kernel] = minima.get(name.kernel, 0.0) + float(each)
    print(json.dumps(minima))


if __name__ == "__main__":
    main(*sys.argv[1:])
