from __future__ import annotations

import asyncio
from collections.abc import Sequence

from compiler.serving.batching.planner import BatchOptions, Planner, Waiting


def _planner(waiting: int, *, runners: int, fixed: float, loop: asyncio.AbstractEventLoop) -> Planner:
    """A queue of requests of one row each; a run takes `fixed` seconds plus one second per row."""
    planner = Planner(BatchOptions(), runners)
    planner.cap = 32
    for rows in (1, 8) * 100:
        planner.learn((), rows, fixed + rows)
    for _ in range(waiting):
        planner.add(Waiting({}, 1, (), None, 0.0, 0.0, 0.0, loop.create_future()))
    return planner


def _batches(planner: Planner, seconds: Sequence[float | None]) -> list[int]:
    """The numbers of rows of one runner's successive batches."""
    batch = planner.begin(0.0)
    found = [batch.rows]
    for each in seconds:
        batch = planner.next(batch, each, 0.0)
        found.append(batch.rows)
    return found


def test_a_batch_takes_no_more_rows_than_save_something_unless_many_wait() -> None:
    loop = asyncio.new_event_loop()
    assert _batches(_planner(9, runners=1, fixed=0.25, loop=loop), [None] * 4) == [3, 2, 2, 2, 0]
    assert _batches(_planner(9, runners=1, fixed=0.0, loop=loop), [None] * 5) == [3, 2, 2, 1, 1, 0]
    assert _batches(_planner(9, runners=1, fixed=9.0, loop=loop), [None]) == [9, 0]
    loop.close()


def test_runners_share_what_waits_and_take_the_next_batch_themselves() -> None:
    loop = asyncio.new_event_loop()
    planner = _planner(8, runners=2, fixed=9.0, loop=loop)
    first, second = planner.begin(0.0), planner.begin(0.0)
    assert (first.rows, second.rows) == (4, 4)
    assert planner.begin(0.0).requests == []  # no runner is free
    planner.add(Waiting({}, 1, (), None, 0.0, 0.0, 0.0, loop.create_future()))
    assert planner.next(first, 13.0, 0.0).rows == 1
    planner.end(second, 13.0)
    assert planner.has_room
    assert not planner.idle
    loop.close()
