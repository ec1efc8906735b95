"""A few random moments; `python -m tests.fuzz tuning --cases 100` tries more."""

from __future__ import annotations

from pathlib import Path

from compiler.records.records import read
from tests.fuzz import tuning
from tests.fuzz.worker_pool import Case, run_cases


def kill(folder: Path, case: Case, times: int) -> int:
    """Kill a number of tuning runs in one folder; return the number of records."""
    outcomes = list(run_cases(case, tuning.prepare(folder), range(times), workers=1, seconds=120))
    assert [outcome.detail for outcome in outcomes if outcome.kind != "right"] == []
    assert len(outcomes) == times
    (records,) = folder.glob("records-*")
    return len(read(records).records)


def test_a_killed_tuning_loses_no_record(tmp_path: Path) -> None:
    assert kill(tmp_path, tuning.instant_case, 4) > 20


def test_a_tuning_killed_while_it_measures_goes_on(tmp_path: Path) -> None:
    assert kill(tmp_path, tuning.case, 2) > 0
