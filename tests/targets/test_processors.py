"""Usable processors and cores, on file systems as machines and containers have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from targets import processors

QUOTAS: list[tuple[Mapping[str, str], float | None]] = [
    ({"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
    ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
    ({"sys/fs/cgroup/cpu.max": "nonsense"}, None),
    ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 3.0),
    ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
    (  # a service of systemd, limited by the slice around it
        {
            "proc/self/cgroup": "0::/machine.slice/app.service",
            "sys/fs/cgroup/machine.slice/cpu.max": "200000 100000",
            "sys/fs/cgroup/machine.slice/app.service/cpu.max": "max 100000",
        },
        2.0,
    ),
    (
        {
            "proc/self/cgroup": "5:memory:/app\n4:cpu,cpuacct:/app",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us": "100000",
        },
        1.5,
    ),
    (  # a container that sees the host's path, and its own group at the root
        {"proc/self/cgroup": "0::/docker/1f", "sys/fs/cgroup/cpu.max": "100000 100000"},
        1.0,
    ),
    ({"proc/self/cgroup": "0::/../other", "sys/fs/other/cpu.max": "100000 100000"}, None),
]
"""Files of control groups, and the processors that they grant."""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a file system of a machine with four processors."""
    monkeypatch.setattr(processors, "_affinity", lambda: frozenset(range(4)))
    return tmp_path


def write(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_without_any_files_each_processor_is_a_core(machine: Path) -> None:
    assert processors.usable_cores(machine) == processors.usable_processors(machine) == 4


def test_two_threads_of_a_core_count_once(machine: Path) -> None:
    siblings = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)
    }
    write(machine, siblings)
    assert (processors.usable_cores(machine), processors.usable_processors(machine)) == (2, 4)


@pytest.mark.parametrize(("files", "quota"), QUOTAS)
def test_quota_of_control_groups(machine: Path, files: Mapping[str, str], quota: float | None) -> None:
    write(machine, files)
    assert processors.cpu_quota(machine) == quota
    expected = 4 if quota is None else -(-quota // 1)
    assert processors.usable_cores(machine) == processors.usable_processors(machine) == expected


@pytest.mark.parametrize(
    ("capacities", "cores"),
    [
        ([1, 1, 1, 1], 4),
        ([1, 1, 0.5, 0.5], 2),  # all four take as long as the fast two: the two leave the others free
        ([1, 0.5, 0.5, 0.5], 4),
        ([1, 1, 1, 1, 0.4, 0.4, 0.4, 0.4], 4),
        ([1, 0.97, 0.97, 0.95], 4),
        ([0.5], 1),
    ],
)
def test_slow_cores_count_where_they_make_a_run_faster(capacities: list[float], cores: int) -> None:
    assert processors.worthwhile(capacities) == cores


def test_efficiency_cores_of_x86(machine: Path) -> None:
    write(machine, {"sys/devices/cpu_atom/cpus": "2-3", "sys/devices/cpu_core/cpus": "0-1"})
    assert processors.usable_cores(machine) == 2


def test_little_cores_of_arm(machine: Path) -> None:
    write(machine, {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": "1024" if i == 3 else "446" for i in range(4)})
    assert processors.usable_cores(machine) == 4  # 4 x 446 > 1 x 1024
    processors._capacities.cache_clear()
    write(machine, {f"sys/devices/system/cpu/cpu{i}/cpu_capacity": "1024" if i > 1 else "400" for i in range(4)})
    assert processors.usable_cores(machine) == 2


@pytest.mark.parametrize(("text", "numbers"), [("", set()), ("0-2,5", {0, 1, 2, 5}), ("7", {7}), ("a-b", set())])
def test_lists_of_numbers(text: str, numbers: set[int]) -> None:
    assert processors.parse_list(text) == numbers
