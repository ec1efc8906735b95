"""Answers delayed by a busy process, and overload with and without allowance for it, on a simulated clock."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from compiler.serving.app.http import Lag
from compiler.serving.batching.costs import Accuracy
from compiler.serving.batching.planner import BatchOptions, Planner, Waiting


def test_the_longest_wait_is_kept_for_one_to_two_seconds() -> None:
    lag = Lag()
    assert lag.margin(0.1, 10.0) == 0
    lag.add(0.004, 10.0)
    lag.add(0.001, 10.9)
    assert lag.margin(0.1, 11.5) == pytest.approx(0.008)
    lag.add(0.002, 11.6)
    assert lag.margin(0.1, 12.6) == pytest.approx(0.004)
    assert lag.margin(0.1, 14.0) == 0


def test_a_long_wait_leaves_half_of_a_requests_time() -> None:
    lag = Lag()
    lag.add(5.0, 0.0)
    assert lag.margin(0.1, 0.5) == pytest.approx(0.05)


class _Simulated:
    """Three times as many requests as one runner can answer, each read late and its answer written late."""

    rows, seconds, allowed = 8, 0.025, 0.1

    def __init__(self, with_margin: bool) -> None:
        self.lag, self.with_margin, self.accuracy = Lag(), with_margin, Accuracy()
        self.planner = Planner(BatchOptions(max_batch_size=self.rows), 1)
        self.planner.cap = self.rows
        for rows in (1, self.rows) * 50:
            self.planner.learn((), rows, self._run(rows))
        self.latencies: list[float] = []

    def _run(self, rows: int) -> float:
        return self.seconds * (0.2 + 0.8 * rows / self.rows)

    def run(self, count: int) -> None:
        random = np.random.default_rng(0)
        sent = np.cumsum(random.exponential(self.seconds / self.rows / 3, count))
        read = np.maximum.accumulate(sent + random.uniform(0, 0.006, count))
        future = asyncio.new_event_loop().create_future()
        future.get_loop().close()
        batch = self.planner.begin(0.0)
        ends = 0.0
        for now, begun in zip(read.tolist(), sent.tolist(), strict=True):
            while batch.requests and ends <= now:
                for each in batch.requests:
                    self._written(each, ends, ends + random.uniform(0, 0.006))
                batch = self.planner.next(batch, self._run(batch.rows), ends)
                ends += self._run(batch.rows) * random.uniform(0.97, 1.03)
            expected = self.planner.expected_latency((), 1, now)
            margin = self.lag.margin(self.allowed, now) if self.with_margin else 0.0
            if expected * self.accuracy.factor + margin <= self.allowed:
                self.planner.add(Waiting({}, 1, (), now + self.allowed, begun, now, expected, future))
            if not batch.requests:
                batch = self.planner.begin(now)
                ends = now + self._run(batch.rows)

    def _written(self, waiting: Waiting, ended: float, now: float) -> None:
        self.lag.add(now - ended, now)
        self.accuracy.add(waiting.expected, now - waiting.admitted)
        self.latencies.append(now - waiting.arrived)


def test_overload_keeps_what_it_accepts_when_reading_and_writing_take_time() -> None:
    found = {}
    for with_margin in (False, True):
        simulated = _Simulated(with_margin)
        simulated.run(10_000)
        late = np.array(simulated.latencies[500:]) > simulated.allowed
        found[with_margin] = (len(late), float(late.mean()))
    assert found[False][1] > 0.01
    assert found[True][1] < 0.0005
    assert found[True][0] > 0.95 * found[False][0]
