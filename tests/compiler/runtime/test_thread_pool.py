"""The thread pool of parallel regions: its own checks under sanitizers, and its use by modules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import targets
from compiler.runtime.thread_pool import SOURCE

_TEST = Path(__file__).with_name("thread_pool_test.cc")
_OPTIONS = ("-std=c++17", "-g1", "-O1", "-fno-sanitize-recover=all", "-pthread")


@pytest.mark.parametrize(
    ("sanitizers", "arguments"),
    # A child of a process with threads has no ThreadSanitizer.
    [("address,undefined", ()), ("thread", ("without-fork",))],
)
def test_under_sanitizers(sanitizers: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    program = tmp_path / "test"
    options: list[str | Path] = [
        *_OPTIONS,
        f"-fsanitize={sanitizers}",
        f"-I{SOURCE.parent}",
        "-x",
        "c++",
        SOURCE,
        _TEST,
    ]
    targets.get("host", cores=1).compiler().run([*options, "-o", program])
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
