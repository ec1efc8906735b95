"""The number of threads sets the parts of kernels, up to their tasks, for modules compiled for any number of cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import compiler
from compiler.runtime import load
from compiler.support.balance import task_counts
from tests.compiler.building import perceptron

NUMBERS = ("2", "1", "3", "2", "50", "4")  # fewer than before, and more; more than there are tasks


@pytest.fixture(scope="module", params=[2, 8])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of three large products, compiled for the given number of cores."""
    path = tmp_path_factory.mktemp("parts") / "perceptron.twm"
    model = perceptron(batch=64, width=256)
    compiler.compile(model, target=f"host:{request.param}", threads=request.param).export(path)
    return path


@pytest.mark.parametrize("way", ["python", "thread", "c"])
def test_parts_follow_the_threads_of_a_run(path: Path, way: str) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS")
    }
    command = [sys.executable, "-m", "tests.compiler.runtime.parts", str(path), way, *NUMBERS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    tasks = {count for entry in load(path).manifest.kernels for count in task_counts(entry.tasks or (), {}) or ()}
    assert 5 < max(tasks) < 50
    assert json.loads(done.stdout) == [sorted({min(int(number), each) for each in tasks}) for number in NUMBERS]
