"""The C++ runtime counts processors and cores as the Python package does."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from compiler.device.programs import SOURCES
from targets import processors
from targets.toolchain import find_compiler
from tests.targets.test_processors import QUOTAS, write

_MAIN = """
#include <cstdio>
#include "usable_cores.h"
int main(int, char** arguments) {
  std::string root = arguments[1];
  std::printf("%d %d", tensorwright::UsableProcessors(root), tensorwright::UsableCores(root));
}
"""
CPU = "sys/devices/system/cpu"
TOPOLOGIES: list[Mapping[str, str]] = [
    {},
    {f"{CPU}/cpu{number}/topology/thread_siblings_list": "0-1" for number in range(64)},
    {"sys/devices/cpu_atom/cpus": "1-63"},
    {"sys/devices/cpu_atom/cpus": "0-63"},
    {f"{CPU}/cpu{number}/cpu_capacity": str(1024 >> number % 4) for number in range(64)},
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints the counts for a root of a file system."""
    folder = tmp_path_factory.mktemp("usable_cores")
    (folder / "main.cc").write_text(_MAIN)
    sources = [folder / "main.cc", SOURCES / "usable_cores.cc"]
    find_compiler().run(["-std=c++17", "-I", SOURCES, *sources, "-o", folder / "main"])
    return folder / "main"


@pytest.mark.parametrize("files", [*(files for files, _ in QUOTAS), *TOPOLOGIES])
def test_counts_as_python_does(program: Path, tmp_path: Path, files: Mapping[str, str]) -> None:
    write(tmp_path, files)
    counts = subprocess.run([program, f"{tmp_path}/"], check=True, capture_output=True, text=True).stdout
    assert counts == f"{processors.usable_processors(tmp_path)} {processors.usable_cores(tmp_path)}"
