"""Pipelines: stages overlap, order is kept, queues are bounded, errors and cancellations affect one item."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from compiler.errors import OptionError, OverloadedError, ServiceUnavailableError
from compiler.runtime import Module
from compiler.serving.pipeline import Pipeline, Stage
from tests.compiler.runtime.building import dense_artifact


def test_results_come_in_order_and_a_module_is_a_stage() -> None:
    module = Module(dense_artifact(), threads=1)
    x = np.random.default_rng(0).standard_normal((20, 1, 16)).astype(np.float32)
    stages: list[Any] = [Stage(lambda row: {"x": row}, workers=3), module.run, lambda outputs: outputs["y"]]
    with Pipeline(stages, capacity=2) as pipeline:
        results = list(pipeline.map(x))
    assert np.array_equal(results, [module.run({"x": row})["y"] for row in x])


def test_stages_of_different_items_overlap() -> None:
    # Both stages have to be at work at the same time, or the barrier is never passed.
    barrier = threading.Barrier(2, timeout=60)
    seen: list[int] = []

    def first(item: int) -> int:
        if item == 1:
            barrier.wait()
        return item

    def second(item: int) -> int:
        if item == 0:
            barrier.wait()
        seen.append(item)
        return item

    with Pipeline([first, second]) as pipeline:
        assert list(pipeline.map(range(3))) == [0, 1, 2]
    assert seen == [0, 1, 2]


def test_back_pressure_bounds_what_is_taken() -> None:
    go, taken = threading.Event(), []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    def blocked(item: int) -> int:
        go.wait()
        return item

    with Pipeline([lambda item: item, blocked], capacity=2) as pipeline:
        futures = []
        with contextlib.suppress(OverloadedError):
            for item in range(1000):
                futures.append(pipeline.submit(item, timeout=0.2))
        with pytest.raises(OverloadedError, match="no room"):
            pipeline.submit(1000, timeout=0.0)
        assert len(futures) <= 2 + 2 + 2  # both queues, and an item with each worker
        go.set()
        assert [each.result() for each in futures] == list(range(len(futures)))
        mapped = pipeline.map(items())
        assert next(mapped) == 0
        assert len(taken) <= pipeline._limit + 2
        mapped.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch", [None, 4])
def test_an_item_fails_alone(batch: int | None) -> None:
    def halves(values: Any) -> Any:
        if batch is None:
            return 12 // values
        return [12 // value for value in values]

    with Pipeline([Stage(halves, batch=batch), lambda value: value + 1]) as pipeline:
        futures = [pipeline.submit(value) for value in (1, 0, 2, 3)]
        assert [futures[place].result() for place in (0, 2, 3)] == [13, 7, 5]
        with pytest.raises(ZeroDivisionError):
            futures[1].result()
        with pytest.raises(ZeroDivisionError):
            list(pipeline.map([1, 0, 2]))
        assert pipeline.submit(4).result() == 4


def test_batches_take_what_waits() -> None:
    go, started, sizes = threading.Event(), threading.Event(), []

    def batched(values: list[int]) -> list[int]:
        sizes.append(len(values))
        started.set()
        go.wait()
        return values

    with Pipeline([Stage(batched, batch=3)], capacity=8) as pipeline:
        futures = [pipeline.submit(0)]
        started.wait()
        futures += [pipeline.submit(value) for value in range(1, 6)]
        go.set()
        assert [each.result() for each in futures] == list(range(6))
    assert sizes == [1, 3, 2]


def test_cancelled_items_go_through_no_further_stage() -> None:
    go, begun, seen = threading.Event(), threading.Event(), []

    def first(item: int) -> int:
        begun.set()
        go.wait()
        return item

    pipeline = Pipeline([first, lambda item: seen.append(item) or item])  # type: ignore[func-returns-value]
    futures = [pipeline.submit(item) for item in range(3)]
    begun.wait()
    assert futures[0].cancel()  # in the first stage
    assert futures[1].cancel()  # in its queue
    go.set()
    assert futures[2].result() == 2
    pipeline.close()
    assert seen == [2]
    with pytest.raises(CancelledError):
        futures[0].result()
    with pytest.raises(ServiceUnavailableError, match="closed"):
        pipeline.submit(1)


def test_event_loops_wait_without_blocking_and_can_be_cancelled() -> None:
    go = threading.Event()

    def blocked(item: int) -> int:
        go.wait()
        return item * 10

    async def items() -> AsyncIterator[int]:
        for item in range(5):
            yield item

    async def scenario(pipeline: Pipeline) -> None:
        tasks = [asyncio.create_task(pipeline.run(item)) for item in range(6)]
        for _ in range(10):
            await asyncio.sleep(0)  # the loop goes on though the pipeline is full
        assert not any(task.done() for task in tasks)
        tasks[5].cancel()  # waits for room
        tasks[1].cancel()  # waits in the queue
        go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each for each in results if isinstance(each, int)] == [0, 20, 30, 40]
        assert [each async for each in pipeline.stream(items())] == [0, 10, 20, 30, 40]
        assert [each async for each in pipeline.stream([1, 2])] == [10, 20]

    with Pipeline([blocked], capacity=2) as pipeline:
        asyncio.run(scenario(pipeline))
        assert pipeline.submit(1, timeout=60).result() == 10  # no place was lost


def test_closing_with_cancellation_and_numbers_that_make_no_sense() -> None:
    go, begun, ended = threading.Event(), threading.Event(), threading.Semaphore(0)

    def blocked(item: int) -> int:
        begun.set()
        go.wait()
        return item

    pipeline = Pipeline([blocked])
    futures = [pipeline.submit(item) for item in range(3)]
    begun.wait()
    closing = threading.Thread(target=pipeline.close, kwargs={"cancel": True})
    closing.start()
    for each in futures:
        each.add_done_callback(lambda _: ended.release())
    for _ in futures:
        ended.acquire()
    assert all(each.cancelled() for each in futures)
    go.set()
    closing.join()
    wrong: list[tuple[list[Any], int, str]] = [
        ([], 1, "without stages"),
        ([blocked], 0, "capacity must be at least 1, not 0"),
        ([blocked, Stage(blocked, workers=0)], 1, "workers of stage 1 must be at least 1, not 0"),
        ([Stage(blocked, batch=0)], 1, "batch of stage 0"),
        ([3], 1, "stage 0 is no function: 3"),
    ]
    for stages, capacity, message in wrong:
        with pytest.raises(OptionError, match=message):
            Pipeline(stages, capacity=capacity)
