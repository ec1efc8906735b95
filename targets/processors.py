"""The processors and cores that this process may use, as Linux reports them.

TVM is not imported: the runtime on a device uses this, too. `compiler/device/cpp/usable_cores.cc` counts the same way.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

_ROOT = Path("/")
_PROCESSORS = "sys/devices/system/cpu"
_EFFICIENCY_CAPACITY = 0.5
"""Capacity of an efficiency core of x86, relative to a performance core: its two multiply-add units are half as wide
(Intel's optimization manual on Golden Cove and Gracemont)."""


def usable_processors(root: Path = _ROOT) -> int:
    """Logical processors that this process may use, given its affinity and its control groups' quota; at least 1.

    A fraction of a processor counts as one.
    """
    return _within_quota(len(_affinity()), root)


def usable_cores(root: Path = _ROOT) -> int:
    """Physical cores that this process may use and that make a run faster; at least 1, and no more than
    `usable_processors`.

    Threads get equal parts of the work, so the slowest core decides: efficiency cores count only if there are enough of
    them to make up for that.
    """
    return _within_quota(worthwhile(_capacities(_affinity(), root)), root)


def worthwhile(capacities: Iterable[float]) -> int:
    """Number of cores that finish equal parts of some work earliest, given their speeds; the smallest such number."""
    fastest = sorted(capacities, reverse=True)
    return 1 + max(range(len(fastest)), key=lambda last: (last + 1) * fastest[last])


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _within_quota(count: int, root: Path) -> int:
    quota = cpu_quota(root)
    return max(1, count if quota is None else min(count, math.ceil(quota)))


@cache
def _capacities(allowed: frozenset[int], root: Path) -> tuple[float, ...]:
    """The speed of each physical core, relative to each other."""
    slow = parse_list(_text(root / "sys/devices/cpu_atom/cpus"))  # on Intel's hybrid processors
    cores: dict[str, float] = {}
    for number in sorted(allowed):
        folder = root / _PROCESSORS / f"cpu{number}"
        core = _text(folder / "topology/thread_siblings_list") or str(number)
        told = _text(folder / "cpu_capacity")  # on Arm and RISC-V
        cores[core] = float(told) if told.isdigit() else _EFFICIENCY_CAPACITY if number in slow else 1.0
    return tuple(cores.values())


def parse_list(text: str) -> frozenset[int]:
    """The numbers in a list in Linux notation ("0-3,8"); empty if it is not one."""
    numbers: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        if not (first.isdigit() and (last or first).isdigit()):
            return frozenset()
        numbers |= set(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def cpu_quota(root: Path = _ROOT) -> float | None:
    """Processors granted by this process's control groups, including the enclosing ones; None: no limit."""
    quotas = [quota for folder in _groups(root) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups that may limit its processor time.

    In a container, the path in /proc may exist only on the host; the root of the hierarchy is then its own group.
    """
    mounted = root / "sys/fs/cgroup"
    yield from (mounted, mounted / "cpu", mounted / "cpu,cpuacct")
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        hierarchy = mounted / controllers
        parts = [part for part in path.split("/") if part]
        if ".." not in parts:
            yield from (hierarchy.joinpath(*parts[: depth + 1]) for depth in range(len(parts)))


def _quota(group: Path) -> float | None:
    """The limit of one group, of cgroups version 2 or 1."""
    limit, _, period = _text(group / "cpu.max").partition(" ")
    if not limit:
        limit, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    if not (limit.isdigit() and period.isdigit() and int(period)):
        return None  # "max", or -1
    return int(limit) / int(period)


def _text(path: Path) -> str:
    """The stripped contents of a file; "" if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
