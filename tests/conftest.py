"""Settings of the whole suite."""

from __future__ import annotations

import gc
import inspect
import linecache
import os
import re
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

# Compiling takes as long as it takes, and a busy machine is no defect: neither is a reason to fail.
settings.register_profile("tensorwright", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tensorwright")

# A thread of OpenBLAS spins for tens of milliseconds after each product, beside two processes on two cores. Read when
# numpy is loaded, here and in the processes that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# What a developer has tuned is not part of what is tested.
os.environ["TENSORWRIGHT_RECORDS"] = str(Path(tempfile.gettempdir()) / "tensorwright-tests-have-no-records")

OPTIMIZE = "TENSORWRIGHT_TESTS_OPTIMIZE"
"""Environment variable: optimize the machine code of all tests, as `make sweep` does."""

# The runtime in C++ is compiled for each architecture once, which takes longer than its tests.
if not os.environ.get(OPTIMIZE):
    os.environ.setdefault("TENSORWRIGHT_CXXFLAGS", "-O0")

REQUIRE_TOOLS = "TENSORWRIGHT_TESTS_REQUIRE_TOOLS"
"""Environment variable: fail, rather than skip, tests for which this machine lacks a compiler or an emulator."""


def _stack(context: int = 1) -> list[inspect.FrameInfo]:
    """`inspect.stack`, which TVMScript calls for each function and module that it parses, without its search of all
    loaded modules for each frame's file: with what tests import, it takes 0.3 seconds."""
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        lines = [linecache.getline(code.co_filename, frame.f_lineno)]
        frames.append(inspect.FrameInfo(frame, code.co_filename, frame.f_lineno, code.co_name, lines, 0))
        frame = frame.f_back
    return frames


inspect.stack = _stack

SWEEPS = Path(__file__).with_name("sweeps.txt")
"""Tests with the marker `sweep`: patterns of their names, one a line."""

UNUSED_PATTERNS = pytest.StashKey[set[str]]()
"""Patterns of SWEEPS that name none of the collected tests."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks sweeps, and keeps the patterns that name no test for tests/test_sweeps.py."""
    lines = {line for line in SWEEPS.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
    patterns = {line: re.compile(re.escape(line).replace(r"\*", ".*")) for line in lines if "*" in line}
    used = set()
    any_pattern = re.compile("|".join(pattern.pattern for pattern in patterns.values()))
    for item in items:
        name = item.nodeid
        found = {name} & lines
        if any_pattern.fullmatch(name):
            found |= {line for line, pattern in patterns.items() if pattern.fullmatch(name)}
        if found:
            item.add_marker(pytest.mark.sweep)
            used |= found
    config.stash[UNUSED_PATTERNS] = lines - used


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares garbage collections the objects of imported modules, and gives PyTorch one thread; beside other test
    processes, code of kernels is generated without further ones.

    What the test files import is there to stay. A full collection takes half a second to find that out, and captures of
    PyTorch models start several, and hundreds of small ones: Python's threshold of 700 objects is made larger. Two test
    processes with two threads each would wait for one another on two cores.
    """
    gc.disable()
    try:
        result = yield
    finally:
        gc.enable()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
    build = sys.modules.get("compiler.codegen.build")
    if build is not None and "PYTEST_XDIST_WORKER" in os.environ:
        # A fork of a process with all that tests import takes as long as generating the code of a small kernel.
        vars(build)["_build_in_processes"] = build._build_here
    return result


def _missing_tool(error: BaseException | None) -> str | None:
    """The program to install, if an exception or its cause says that one is missing."""
    from targets.errors import ToolchainMissing

    while error is not None:
        if isinstance(error, ToolchainMissing):
            return f"{error.message}: {error.hint}"
        error = error.__cause__
    return None


def _skip_without_tools() -> Generator[None, object, object]:
    try:
        return (yield)
    except Exception as error:
        reason = None if os.environ.get(REQUIRE_TOOLS) else _missing_tool(error)
        if reason is None:
            raise
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Skips tests whose fixtures need a program that this machine lacks."""
    return (yield from _skip_without_tools())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skips tests that need a program that this machine lacks."""
    return (yield from _skip_without_tools())
