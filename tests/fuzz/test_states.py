"""A few cases of the states suite; the long run is `python -m tests.fuzz states`."""

from __future__ import annotations

import pytest

from compiler.passes.memory import update_states
from tests.fuzz import states


def test_random_state_programs_equal_torch() -> None:
    assert [states.case(None, seed).kind for seed in range(3)] == ["right"] * 3


def test_a_value_that_is_overwritten_too_early_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_states._Update, "_is_read_before", lambda *_: True)
    assert "wrong" in {states.case(None, seed).kind for seed in range(3)}
