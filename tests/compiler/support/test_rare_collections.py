"""Thresholds of garbage collection while a decorated function runs."""

import gc

from compiler.support.compilation import collecting_rarely


def test_thresholds_hold_while_any_call_runs() -> None:
    before = gc.get_threshold()

    @collecting_rarely
    def outer() -> tuple[int, int, int]:
        inner()
        return gc.get_threshold()

    @collecting_rarely
    def inner() -> None:
        raise_thresholds.append(gc.get_threshold())

    raise_thresholds: list[tuple[int, int, int]] = []
    assert outer() == raise_thresholds[0] > before
    assert gc.get_threshold() == before
