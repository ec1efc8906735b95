"""One module used by many threads and processes at once, and the number of threads of a run."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from compiler.device.emulation import EmulatedExecutor
from compiler.errors import InputError, OptionError
from compiler.runtime import Module, load
from compiler.runtime import threads as settings
from compiler.runtime.executor import LocalExecutor
from tests.compiler.runtime.building import build_artifact, dense_artifact
from tests.compiler.runtime.parallel import parallel_library

SHAPE = (64, 64)


def _parallel_artifact() -> Any:
    from dataclasses import replace

    artifact = build_artifact([("x", SHAPE, "float32")], [("y", SHAPE, "float32")], lambda x: [x])
    return replace(artifact, library=parallel_library(SHAPE))


@pytest.fixture(scope="module")
def parallel() -> Module:
    return Module(_parallel_artifact())


def _system_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def _settled(wanted: int) -> int:
    """Number of threads of the process, waiting for the expected number, as threads take a moment to end."""
    for _ in range(10_000):
        if _system_threads() == wanted:
            break
        time.sleep(0.001)
    return _system_threads()


def _in_process(code: str) -> None:
    """Run code in a process of its own, where `module` is the parallel module and `x` its input."""
    header = """
from tests.compiler.runtime.test_threads import *
from tests.compiler.runtime.test_threads import _parallel_artifact, _settled, _system_threads
module, x = Module(_parallel_artifact()), np.zeros(SHAPE, np.float32)
before = _system_threads()
"""
    done = subprocess.run([sys.executable, "-c", header + code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def test_helpers_are_started_once() -> None:
    _in_process("""
most = 1
for count in (1, 2, 3, 2, 1, 3):
    module.threads = count
    assert (module.run([x])["y"] == 1).all()
    most = max(most, count)
    assert _settled(before + most - 1) == before + most - 1, count
""")


def test_many_callers_share_few_threads_which_sleep_when_nothing_runs() -> None:
    _in_process("""
import itertools
from pathlib import Path
settings.usable_processors = lambda: 4
module.threads = 2
def calls():
    for _ in range(50):
        module.run([x])
running, most, lock = 0, 0, threading.Lock()
started, both = itertools.count(), threading.Barrier(2)  # the first two run at once
run = LocalExecutor._run
def counted(*arguments):
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    try:
        if next(started) < 2:
            both.wait()
        return run(*arguments)
    finally:
        with lock:
            running -= 1
LocalExecutor._run = counted
for _ in range(3):
    callers = [threading.Thread(target=calls) for _ in range(9)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
assert most == 2
assert _settled(before + most) == before + most  # a helper for each of those that ran at once, and none for callers
others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
def states():
    return [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in others]
for _ in range(10_000):
    if set(states()) == {"S"}:
        break
    time.sleep(0.001)
used = [(task / "schedstat").read_text() for task in others]  # processor time, how often it was woken
sum(range(1_000_000))
assert set(states()) == {"S"}
assert [(task / "schedstat").read_text() for task in others] == used
""")


def test_runs_of_other_threads_wait_for_processors(parallel: Module) -> None:
    semaphore = settings.FairSemaphore(1)
    parallel.threads = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(settings._semaphores, 1, semaphore)
        running, most, lock = [0], [0], threading.Lock()
        run = LocalExecutor._run

        def counted(*arguments: Any) -> Any:
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            try:
                return run(*arguments)
            finally:
                with lock:
                    running[0] -= 1

        patch.setattr(LocalExecutor, "_run", counted)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda n: parallel.run([np.full(SHAPE, n, np.float32)])["y"], range(40)))
    assert most[0] == 1
    assert semaphore.free == 1
    assert all((result == n + 1).all() for n, result in enumerate(results))


def test_virtual_machines_that_no_run_needs_are_freed(parallel: Module) -> None:
    parallel.threads = 1
    executor: Any = parallel._executor
    executor._idle.extend([executor._new_session() for _ in range(4)])
    x = np.zeros(SHAPE, np.float32)
    for _ in range(3 * 256):
        parallel.run([x])
    assert len(executor._idle) == 1


def test_submitted_runs_give_futures(parallel: Module) -> None:
    for threads in (1, 2):
        parallel.threads = threads
        arrays = [np.full(SHAPE, n, np.float32) for n in range(20)]
        out = np.empty(SHAPE, np.float32)
        futures = [parallel.submit([each]) for each in arrays]
        last = parallel.submit({"x": arrays[3]}, out={"y": out})
        assert all((future.result()["y"] == n + 1).all() for n, future in enumerate(futures))
        assert last.result()["y"] is out
        assert (out == 4).all()
        with pytest.raises(InputError, match="expected 1 input, got"):
            parallel.submit([]).result()


def test_an_event_loop_goes_on_while_models_run(parallel: Module) -> None:
    async def several() -> list[Any]:
        with pytest.raises(InputError, match="expected 1 input, got"):
            await parallel.run_async([])
        return await asyncio.gather(*(parallel.run_async([np.full(SHAPE, n, np.float32)]) for n in range(20)))

    assert all((result["y"] == n + 1).all() for n, result in enumerate(asyncio.run(several())))


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setenv("TVM_NUM_THREADS", "3")
    artifact = dense_artifact()
    module = Module(artifact)
    assert module.threads == 3
    assert Module(artifact, threads=5).threads == 5
    stored = replace(artifact, manifest=msgspec.structs.replace(artifact.manifest, threads=1))
    assert Module(stored).threads == 1
    module.threads = 2
    assert module.threads == 2
    module.threads = None
    assert module.threads == 3
    monkeypatch.delenv("TVM_NUM_THREADS")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert 1 <= Module(artifact).threads <= (os.cpu_count() or 1)


def test_a_module_cannot_ask_for_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    artifact = dense_artifact()
    stored = replace(artifact, manifest=msgspec.structs.replace(artifact.manifest, threads=4096))
    module = Module(stored)
    assert module.threads == len(os.sched_getaffinity(0)) == Module(stored, executor=EmulatedExecutor(stored)).threads
    limit = settings.threads_limit()
    module.threads = limit
    assert module.threads == limit
    with pytest.raises(OptionError, match=f"at most {limit} threads"):
        module.threads = limit + 1
    monkeypatch.setenv("TVM_NUM_THREADS", "100000")
    with pytest.raises(OptionError, match="TVM_NUM_THREADS is 100000"):
        Module(artifact)
    assert Module(artifact, threads=1).threads == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_many_callers_at_once(threads: int) -> None:
    module = Module(dense_artifact(), threads=threads)
    weight, bias = module.parameters.values()
    barrier = threading.Barrier(6)

    def call(seed: int) -> None:
        random = np.random.default_rng(seed)
        barrier.wait()
        for _ in range(100):
            x = random.standard_normal((int(random.integers(1, 60)), 16), np.float32)
            np.testing.assert_allclose(module.run({"x": x})["y"], x @ weight + bias, atol=1e-4)

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(call, seed) for seed in range(6)]:
            future.result(timeout=600)
    assert isinstance(module._executor, LocalExecutor)
    assert len(module._executor._idle) <= 6


def _child(module: Module) -> int:
    """Fork; the child runs on one and on two threads and exits with 0 if the results are right."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status = 1
    try:
        x = np.full(SHAPE, 2, np.float32)
        for threads in (1, 2, 1, 2):
            module.threads = threads
            assert (module.run([x])["y"] == 3).all()
        status = 0
    finally:
        os._exit(status)


def test_a_forked_child_goes_on() -> None:
    code = """
import sys
import numpy as np
from compiler.runtime import load
from tests.compiler.runtime.test_threads import SHAPE, _child
module = load(sys.argv[1], threads=2)
assert _child(module) == 0  # before any pool exists
module.run([np.zeros(SHAPE, np.float32)])
assert _child(module) == 0  # with a pool whose threads the child does not have
assert (module.run([np.zeros(SHAPE, np.float32)])["y"] == 1).all()
"""
    import subprocess
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parallel.twm"
        Module(_parallel_artifact()).export(path)
        result = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=600, cwd=os.getcwd()
        )
    assert result.returncode == 0, result.stderr


def _load_and_run(path: str) -> list[float]:
    return load(path, threads=2).run([np.zeros(SHAPE, np.float32)])["y"].mean(axis=1).tolist()


def test_several_processes_load_one_file(tmp_path: Path) -> None:
    path = tmp_path / "parallel.twm"
    Module(_parallel_artifact()).export(path)
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for result in pool.map(_load_and_run, [str(path)] * 4):
            assert result == [1.0] * 64
