"""Statistics of repeated timings on a machine that other programs use too; how long threads waited for a processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

# Robust statistics of repeated timings on a machine that other programs use too.


_LOWEST = 3


def typical(samples: Sequence[float]) -> float:
    """The median of the three shortest: interference only ever adds time, and a single time may be luck."""
    lowest = sorted(samples)[:_LOWEST]
    return lowest[len(lowest) // 2]


def spread(samples: Sequence[float]) -> float:
    """Spread of the three shortest times, as a share of the shortest; infinite when there are fewer."""
    if len(samples) < _LOWEST:
        return float("inf")
    lowest = sorted(samples)[:_LOWEST]
    return (lowest[-1] - lowest[0]) / lowest[0]


# How long the threads of this process have waited for a processor, as Linux counts it.


class WaitingClock:
    """Reads the run queue delay of the threads that there are when it is made; zero where the system does not say.

    /proc/PID/task/TID/schedstat holds "time on a processor, time waiting for one, time slices", times in nanoseconds.
    """

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for task in Path("/proc/self/task").iterdir():
                self._files.append(os.open(task / "schedstat", os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass

    def seconds(self) -> float:
        """The sum over the threads since they began."""
        total = 0
        for file in self._files:
            fields = os.pread(file, 96, 0).split()
            if len(fields) >= 2:
                total += int(fields[1])
        return total * 1e-9

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)
