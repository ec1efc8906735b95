"""The correction for the instrument's overhead, tested on simulated marks."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.profiling.instrument import Call, Recording, call_times, crossing_costs

RETURN = 300
"""Nanoseconds from leaving the instrument back into TVM."""
BODY = 70
"""Nanoseconds inside the instrument."""
ENTRY = {("Tensor",): 500, ("Tensor", "Tensor"): 900, (): 100}
"""Nanoseconds to enter it, by kinds of arguments."""


def simulate(calls: list[tuple[str, tuple[str, ...], int | None, int]], dispatch: int = 0) -> Recording:
    """Marks of a run of calls (name, kinds, parent, own time in ns); children directly follow their parent."""
    made: list[Call] = []
    order: list[int] = []
    starts: list[bool] = []
    entered: list[int] = []
    left: list[int] = []
    clock = 1_000_000

    def cross(index: int, start: bool) -> None:
        nonlocal clock
        clock += ENTRY[calls[index][1]]
        entered.append(clock)
        clock += BODY
        left.append(clock)
        clock += RETURN
        order.append(index)
        starts.append(start)

    def run(index: int, depth: int) -> None:
        nonlocal clock
        name, kinds, parent, own = calls[index]
        made.append(Call(name, {}, {}, kinds, depth, parent))
        clock += dispatch
        cross(index, True)
        clock += own
        for child in (other for other, call in enumerate(calls) if call[2] == index):
            run(child, depth + 1)
        cross(index, False)

    for index, call in enumerate(calls):
        if call[2] is None:
            run(index, 0)
    return Recording(made, np.array(order), np.array(starts), np.array([entered]), np.array([left]))


def test_known_times_come_back() -> None:
    recording = simulate(
        [
            ("warm", ("Tensor",), None, 10),
            ("a", ("Tensor",), None, 2000),
            ("b", ("Tensor", "Tensor"), None, 50),
            ("c", (), None, 0),
            ("d", ("Tensor",), None, 123_456),
        ]
    )
    times = call_times(recording)
    assert times.own[0] * 1e9 == pytest.approx([10, 2000, 50, 0, 123_456], abs=1e-3)
    assert times.start[0, 4] * 1e9 == pytest.approx(2060, abs=1e-3)


def test_the_virtual_machines_own_time_is_no_kernels() -> None:
    recording = simulate([("warm", ("Tensor",), None, 10), *[("a", ("Tensor",), None, 1000)] * 5], dispatch=40)
    # The cost of a crossing is the gap ahead of a call, which holds the dispatch too: it is taken off with it.
    assert call_times(recording).own[0, 1:] * 1e9 == pytest.approx([960] * 5, abs=1e-3)


def test_time_of_nested_calls_is_theirs() -> None:
    recording = simulate(
        [
            ("warm", ("Tensor",), None, 10),
            ("loop", ("Tensor",), None, 700),
            ("body", ("Tensor",), 1, 300),
            ("body", ("Tensor",), 1, 400),
        ]
    )
    times = call_times(recording)
    assert times.own[0] * 1e9 == pytest.approx([10, 700, 300, 400], abs=1e-3)
    assert times.duration[0, 1] * 1e9 == pytest.approx(1400, abs=1e-3)
    assert [call.depth for call in recording.calls] == [0, 0, 1, 1]


def test_a_single_call_has_the_cheapest_cost_taken_off() -> None:
    recording = simulate([("only", ("Tensor",), None, 5000)])
    assert crossing_costs(recording).shape == (2,)
    assert np.isfinite(call_times(recording).own).all()


def test_noise_never_makes_negative_times() -> None:
    recording = simulate([("a", ("Tensor",), None, 5), ("b", ("Tensor",), None, 3), ("c", (), None, 1)])
    noisy = Recording(
        recording.calls,
        recording.order,
        recording.is_start,
        recording.entered + np.array([[0, 0, 400, 0, 0, 0]]),
        recording.left,
    )
    times = call_times(noisy)
    assert (times.own >= 0).all()
    assert (np.diff(times.start, axis=1) >= 0).all()
