"""The pool returns one outcome for every case, whatever cases do to their process."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest

from tests.fuzz.outcome import Outcome, outcome_table
from tests.fuzz.worker_pool import run_cases


def _case(context: str, seed: int) -> Outcome:
    """Outcome by seed: right, crash by a signal, exit, hang, or too much memory."""
    assert context == "context"
    kind = seed % 10
    if kind == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 2:
        os._exit(7)
    if kind == 3:
        time.sleep(1000)
    if seed == 10:
        while True:
            pass
    if kind == 4:
        try:
            bytearray(1 << 40)
        except MemoryError:
            return Outcome("refused", "memory")
    return Outcome("right", "none")


def test_crashes_and_hangs_are_outcomes() -> None:
    outcomes = list(run_cases(_case, "context", range(11), workers=2, seconds=1))
    assert sorted(outcome.seed for outcome in outcomes) == list(range(11))
    by_seed = {outcome.seed: outcome for outcome in outcomes}
    assert by_seed[1].kind == "crash"
    assert by_seed[1].detail == "SIGSEGV"
    assert by_seed[2].detail == "exit status 7"
    assert by_seed[3].kind == by_seed[10].kind == "hang"
    assert by_seed[4].label == "memory"
    counts = Counter(outcome.kind for outcome in outcomes)
    assert counts == {"right": 6, "crash": 2, "hang": 2, "refused": 1}
    assert sum(outcome.failed for outcome in outcomes) == 4
    assert outcome_table(outcomes, "title").row_count == 4


def _raising_case(context: str, seed: int) -> Outcome:
    raise AssertionError("a case may not raise; the worker dies")


def test_a_case_that_raises_is_a_crash(capfd: pytest.CaptureFixture[str]) -> None:
    (outcome,) = run_cases(_raising_case, "context", [5], workers=1)
    assert (outcome.kind, outcome.detail) == ("crash", "exit status 1")
    assert "a case may not raise" in capfd.readouterr().err
