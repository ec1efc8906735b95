"""Jobs that crash, panic, spin or use too much memory fail only their own request."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from compiler.errors import InputError, OptionError, ServiceUnavailableError
from compiler.serving.limits import LimitError, Limits
from compiler.serving.sandbox.client import Sandbox, State
from compiler.serving.sandbox.process import LENGTH_BYTES, pack, unpack

PROGRAM = "tests.compiler.serving.sandbox.misbehaving"


def _run(work: Callable[[Sandbox], Awaitable[Any]], limits: Limits | None = None) -> Any:
    async def main() -> Any:
        sandbox = Sandbox(limits or Limits(), PROGRAM)
        try:
            return await work(sandbox)
        finally:
            sandbox.close()

    return asyncio.run(main())


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.bool_, ml_dtypes.bfloat16])
def test_arrays_go_there_and_back(dtype: Any) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    back = unpack(pack({"a": [array, b"x", None]})[LENGTH_BYTES:])["a"]
    assert (back[0].dtype, back[1:]) == (array.dtype, [b"x", None])
    np.testing.assert_array_equal(back[0], array)

    async def work(sandbox: Sandbox) -> Any:
        return await sandbox.run("double", None, np.ones((0, 3), np.float32))

    doubled, name = _run(work)
    assert (doubled.shape, name) == ((0, 3), "float32")


def test_states_are_built_once_and_forgotten() -> None:
    async def work(sandbox: Sandbox) -> list[Any]:
        one, two = State("number", 1), State("number", 2)
        found = [await sandbox.run("add", state, 10) for state in (one, two, one)]
        forker = sandbox._forker("")
        names = len(forker._names)
        del one
        gc.collect()
        found.append(await sandbox.run("add", two, 20))
        return [*found, names, len(forker._names), list(forker._forgotten)]

    assert _run(work) == [11, 12, 11, 22, 2, 1, []]


def test_a_process_that_was_busy_while_a_state_was_built_is_not_used_for_it() -> None:
    async def work(sandbox: Sandbox) -> list[Any]:
        state = State("number", 1)
        first = sandbox._forker("").take()
        busy = asyncio.ensure_future(first.ask(pack(["process", None])))
        found = [await sandbox.run("add", state, 1)]
        await busy
        sandbox._forker("")._drop_idle()
        sandbox._forker("").give_back(first)
        return [*found, await sandbox.run("add", state, 2)]

    assert _run(work) == [2, 3]


def test_a_process_runs_several_jobs() -> None:
    async def work(sandbox: Sandbox) -> set[int]:
        return {await sandbox.run("process", None) for _ in range(3)}

    assert len(_run(work)) == 1


@pytest.mark.parametrize(
    ("job", "error", "message"),
    [
        ("panic", InputError, "PanicError: in Rust"),
        ("recurse", InputError, "RecursionError"),
        ("refuse", OptionError, "not this"),
        ("limit", LimitError, "5000 bytes of stop texts"),
        ("crash", InputError, "reading the crash of the request"),
        ("abort", InputError, "reading the abort of the request"),
        ("exit", InputError, "reading the exit of the request"),
    ],
)
def test_a_job_that_fails_is_one_error(job: str, error: type[Exception], message: str) -> None:
    async def work(sandbox: Sandbox) -> int:
        with pytest.raises(error, match=message):
            await sandbox.run(job, None)
        return int(await sandbox.run("add", State("number", 1), 1))

    assert _run(work) == 2


@pytest.mark.parametrize(("job", "arguments"), [("spin", ()), ("map", (1 << 30,)), ("allocate", (1 << 30,))])
def test_the_kernel_ends_what_takes_too_much(job: str, arguments: tuple[int, ...]) -> None:
    async def work(sandbox: Sandbox) -> list[Any]:
        with pytest.raises(InputError):
            await sandbox.run(job, None, *arguments)
        return [await sandbox.run("map", None, 1 << 20), len(sandbox._forker("")._idle)]

    assert _run(work, Limits(sandbox_seconds=1, sandbox_bytes=256 << 20)) == [1 << 20, 1]


def test_others_are_answered_while_jobs_take_long() -> None:
    async def work(sandbox: Sandbox) -> int:
        long = [asyncio.ensure_future(sandbox.run("spin", None)) for _ in range(2)]
        found = await sandbox.run("add", State("number", 1), 1)
        assert not any(each.done() for each in long)
        for each in long:
            each.cancel()
        await asyncio.gather(*long, return_exceptions=True)
        return int(found)

    assert _run(work, Limits(sandboxes=3)) == 2


def test_the_process_of_a_cancelled_job_ends(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def work(sandbox: Sandbox) -> None:
        running = asyncio.ensure_future(sandbox.run("mark", None, str(mark)))
        while not mark.exists() or not mark.read_text():
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        while Path(f"/proc/{mark.read_text()}").exists():
            await asyncio.sleep(0.01)

    _run(work)


def test_a_forker_that_died_is_started_again() -> None:
    async def work(sandbox: Sandbox) -> list[Any]:
        state = State("number", 1)
        found = [await sandbox.run("add", state, 1)]
        process = sandbox._forker("")._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return [*found, await sandbox.run("add", state, 2)]

    assert _run(work) == [2, 3]


def test_states_that_cannot_be_built() -> None:
    async def work(sandbox: Sandbox) -> None:
        with pytest.raises(InputError, match="TypeError"):
            await sandbox.run("add", State("number"), 1)
        with pytest.raises(OptionError, match="not this"):
            await sandbox.run("add", State("wrong", None), 1)
        with pytest.raises(ServiceUnavailableError):
            await sandbox.run("add", State("deadly"), 1)
        assert await sandbox.run("add", State("number", 1), 1) == 2

    _run(work)


def test_a_job_that_goes_on_ends_with_its_socket() -> None:
    async def work(sandbox: Sandbox) -> Any:
        process = await sandbox.begin("go on", State("number", 1), forker="other")
        with contextlib.closing(process):
            return await process.ask(pack([1, "a"]))

    assert _run(work) == [1, "a"]


def test_a_message_that_arrives_during_a_job_does_not_end_it() -> None:
    """As the signal of a message may, which can come after the message has been read."""

    async def work(sandbox: Sandbox) -> list[Any]:
        with contextlib.closing(sandbox._forker("").take()) as process:
            job = pack(["double", None, np.ones(2, np.float32)])
            answers = [await process.ask(job + job), await process.ask(b"")]
        return [answer[1][0].tolist() for answer in answers]

    assert _run(work) == [[2, 2], [2, 2]]
