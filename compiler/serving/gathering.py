"""`gathered`: await many results with bounded concurrency, so that one request leaves room for others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

Result = TypeVar("Result")


async def gathered(count: int, most: int, begin: Callable[[int], Awaitable[Result]]) -> list[Result]:
    """Await the results of `begin(0)` to `begin(count - 1)`, at most `most` of them at a time.

    Raises the first error, and cancels the others.
    """
    results: dict[int, Result] = {}
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            results[number] = await begin(number)

    tasks = [asyncio.ensure_future(work()) for _ in range(min(count, most))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return [results[number] for number in range(count)]
