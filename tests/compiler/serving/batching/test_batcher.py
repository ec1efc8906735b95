from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from compiler.errors import InputError, OptionError, OverloadedError, ServiceUnavailableError
from compiler.serving.batching.batcher import Batcher
from compiler.serving.batching.module_service import ModuleService, Runners
from compiler.serving.batching.planner import BatchOptions
from compiler.serving.request import Request
from tests.compiler.serving.building import Watched, module_of, watched

Array = np.ndarray[Any, Any]


def rows_of(count: int, seed: int = 0, width: int = 16) -> Array:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def with_batcher(test: Callable[[Batcher, Watched], Awaitable[None]], runners: int = 1, **options: Any) -> None:
    """Run a test in an event loop; the first runs, which check the layout, are not counted."""

    async def body() -> None:
        module, executor = watched()
        batcher = Batcher(ModuleService(module, "dense", runners=runners, threads=1), BatchOptions(**options))
        await batcher.start()
        executor.rows.clear()
        while executor.begun.acquire(blocking=False):
            pass
        try:
            await test(batcher, executor)
        finally:
            executor.go.set()
            await batcher.close()

    asyncio.run(body())


async def begun(executor: Watched) -> None:
    """Wait until a run has begun."""
    await asyncio.to_thread(executor.begun.acquire)


async def infer(batcher: Batcher, x: Array, **fields: Any) -> Array:
    response = await batcher.infer(Request({"x": x}, **fields))
    return response.outputs["y"]


async def held(batcher: Batcher, executor: Watched) -> asyncio.Task[Array]:
    """A request whose run waits until it is released."""
    executor.go.clear()
    task = asyncio.ensure_future(infer(batcher, rows_of(1)))
    await begun(executor)
    return task


def test_requests_that_wait_run_together_and_get_their_own_rows() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        parts = [rows_of(count, seed=count) for count in (1, 2, 3)]
        tasks = [asyncio.ensure_future(infer(batcher, part)) for part in parts]
        await asyncio.sleep(0)
        assert batcher.queued_rows == 6
        executor.go.set()
        results = await asyncio.gather(first, *tasks)
        assert executor.rows == [1, 6]
        for part, result in zip(parts, results[1:], strict=True):
            np.testing.assert_allclose(result, batcher.service.module.run({"x": part})["y"], rtol=1e-5, atol=1e-6)
            assert result.base is None  # a cache that keeps it keeps no more

    with_batcher(test)


def test_a_request_of_more_rows_than_a_batch_runs_in_parts() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        x = rows_of(10)
        result = await infer(batcher, x)
        assert sorted(executor.rows) == [2, 4, 4]
        np.testing.assert_allclose(result, batcher.service.module.run({"x": x})["y"], rtol=1e-5, atol=1e-6)

    with_batcher(test, max_batch_size=4)


def test_what_waits_is_shared_among_idle_runners() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        executor.go.clear()
        tasks = [asyncio.ensure_future(infer(batcher, rows_of(1, seed))) for seed in range(8)]
        await begun(executor)
        await begun(executor)
        assert sorted(executor.rows) == [4, 4]
        executor.go.set()
        await asyncio.gather(*tasks)

    with_batcher(test, runners=2)


def test_modules_of_one_model_take_turns_in_the_same_threads() -> None:
    async def test() -> None:
        runners, executors, batchers = Runners("dense"), [], []
        for _ in range(2):
            module, executor = watched()
            service = ModuleService(module, "dense", runners=1, threads=1)
            service.share(runners)
            executors.append(executor)
            batchers.append(Batcher(service, BatchOptions(max_batch_size=1)))
        for batcher in batchers:
            await batcher.start()
        for executor in executors:
            executor.rows.clear()
            while executor.begun.acquire(blocking=False):
                pass
        first, second = executors
        one = await held(batchers[0], first)
        two = [asyncio.ensure_future(infer(batchers[0], rows_of(1))) for _ in range(3)]
        other = asyncio.ensure_future(infer(batchers[1], rows_of(1)))
        while batchers[1]._plan.idle or batchers[1].queued_rows:  # until a batch of it was given to the threads
            await asyncio.sleep(0)
        assert second.rows == []  # there is one thread, which the first module holds
        second.go.clear()
        first.go.set()
        await begun(second)
        assert len(first.rows) < 4  # the other module had its turn before all that waited for the first
        second.go.set()
        assert len(await asyncio.gather(one, *two, other)) == 5
        for batcher in batchers:
            await batcher.close()

    asyncio.run(test())


def test_tiny_runs_are_made_at_once() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        for _ in range(20):
            batcher.costs.add((), 1, 1e-6)
        x = rows_of(1)
        waiting = batcher.infer(Request({"x": x}))
        with pytest.raises(StopIteration) as answered:
            waiting.send(None)  # it does not wait for the event loop
        y = batcher.service.module.run({"x": x})["y"]
        np.testing.assert_array_equal(answered.value.value.outputs["y"], y)
        with pytest.raises(InputError, match="13"):
            await infer(batcher, np.full((1, 16), 13.0, np.float32))

    with_batcher(test)


def test_a_bad_request_in_a_batch_fails_alone() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        good = [asyncio.ensure_future(infer(batcher, rows_of(1, seed))) for seed in (1, 2)]
        bad = asyncio.ensure_future(infer(batcher, np.full((1, 16), 13.0, np.float32)))
        await asyncio.sleep(0)
        executor.go.set()
        with pytest.raises(InputError, match="13 is not allowed"):
            await bad
        for seed, result in zip((1, 2), await asyncio.gather(*good), strict=True):
            expected = batcher.service.module.run({"x": rows_of(1, seed)})["y"]
            np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
        await first
        assert executor.rows[1] == 3

    with_batcher(test)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"x": np.zeros((1, 15), np.float32)}, r"shape \[1, 15\]"),
        ({"x": np.zeros((1, 16), np.float64)}, "element type float64"),
        ({"x": np.zeros(16, np.float32)}, r"shape \[16\]"),
        ({"x": np.zeros((0, 16), np.float32)}, "no rows"),
        ({"z": np.zeros((1, 16), np.float32)}, "no input is named 'z'; missing input"),
        ({}, "missing input"),
    ],
)
def test_inputs_that_do_not_fit_never_reach_a_batch(inputs: dict[str, Array], message: str) -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        with pytest.raises(InputError, match=message):
            await batcher.infer(Request(inputs))
        assert executor.rows == []

    with_batcher(test)


def test_unknown_outputs_are_refused() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        with pytest.raises(InputError, match="no output 'z'"):
            await batcher.infer(Request({"x": rows_of(1)}, outputs=("z",)))

    with_batcher(test)


def test_a_full_queue_refuses() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        tasks = [asyncio.ensure_future(infer(batcher, rows_of(1))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="4 rows wait") as caught:
            await infer(batcher, rows_of(1))
        assert not caught.value.late
        executor.go.set()
        await asyncio.gather(first, *tasks)

    with_batcher(test, max_queue=4)


def test_a_request_that_would_be_late_is_refused_at_once() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        batcher.costs.add((), 1, 60.0)
        with pytest.raises(OverloadedError) as caught:
            await infer(batcher, rows_of(1), deadline=time.monotonic() + 30)
        assert caught.value.late
        assert batcher.queued_rows == 0
        batch = asyncio.ensure_future(infer(batcher, rows_of(1), deadline=time.monotonic() + 3600))
        executor.go.set()
        await asyncio.gather(first, batch)

    with_batcher(test)


def test_deadlines_cap_a_batch() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        for rows in (1, 2, 4, 8):
            batcher.costs.add((), rows, 10.0 + rows)
        deadline = time.monotonic() + 10_000
        tasks = [asyncio.ensure_future(infer(batcher, rows_of(1), deadline=deadline)) for _ in range(3)]
        await asyncio.sleep(0)
        # As if the batch could hold two and be in time.
        batcher.costs.careful = lambda shape, rows: 4000.0 * rows  # type: ignore[method-assign]
        executor.go.set()
        await asyncio.gather(first, *tasks)
        assert executor.rows == [1, 2, 1]

    with_batcher(test)


def test_a_cancelled_request_leaves_the_queue_and_the_others() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        kept, gone = (asyncio.ensure_future(infer(batcher, rows_of(1, seed))) for seed in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        executor.go.set()
        await asyncio.gather(first, kept)
        assert executor.rows == [1, 1]
        assert gone.cancelled()

    with_batcher(test)


def test_small_batches_wait_for_more_where_asked_to() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        tasks = [asyncio.ensure_future(infer(batcher, rows_of(1)))]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert executor.rows == []
        tasks += [asyncio.ensure_future(infer(batcher, rows_of(1))) for _ in range(2)]
        await asyncio.gather(*tasks)
        assert executor.rows == [3]

    with_batcher(test, min_batch_size=3, max_wait_ms=3_600_000)


def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    async def test(batcher: Batcher, executor: Watched) -> None:
        first = await held(batcher, executor)
        second = asyncio.ensure_future(infer(batcher, rows_of(1)))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(ServiceUnavailableError):
            await infer(batcher, rows_of(1))
        executor.go.set()
        await asyncio.gather(first, second, closing)

    with_batcher(test)


@pytest.mark.parametrize("kind", ["fixed", "shared", "sequences", "mixed", "columns"])
def test_each_kind_of_module_answers_as_it_does_alone(kind: str) -> None:
    async def test() -> None:
        module = module_of(kind)
        batcher = Batcher(ModuleService(module, kind, runners=1, threads=1))
        await batcher.start()
        requests = []
        for seed in range(6):
            sizes = {"n": 1 + seed % 3, "t": 2 + seed % 2}
            shapes = [tuple(size if isinstance(size, int) else sizes[size] for size in s.shape) for s in module.inputs]
            random = np.random.default_rng(seed // 2)
            inputs = {
                spec.name: random.standard_normal(shape).astype(np.float32)
                for spec, shape in zip(module.inputs, shapes, strict=True)
            }
            requests.append(inputs)
        responses = await asyncio.gather(*(batcher.infer(Request(each)) for each in requests))
        for inputs, response in zip(requests, responses, strict=True):
            np.testing.assert_allclose(response.outputs["y"], module.run(inputs)["y"], rtol=1e-5)
        await batcher.close()

    asyncio.run(test())


def test_a_module_with_a_fixed_number_of_rows_takes_fewer() -> None:
    async def test() -> None:
        module = module_of("fixed")
        batcher = Batcher(ModuleService(module, "fixed"))
        await batcher.start()
        assert batcher.inputs[0].shape == ("batch", 3)
        x = rows_of(6, width=3)
        result = await infer(batcher, x)
        np.testing.assert_allclose(result, np.exp(x), rtol=1e-5)
        await batcher.close()

    asyncio.run(test())


@pytest.mark.parametrize("options", [{"max_batch_size": 0}, {"max_wait_ms": -1.0}, {"min_batch_size": 64}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BatchOptions(**options)
