from __future__ import annotations

import pytest

from compiler.support.balance import balance, tasks_text


@pytest.mark.parametrize(
    ("counts", "threads", "share"),
    [
        ((16,), 16, 1.0),
        ((17,), 16, 17 / 32),
        ((16,), 32, 0.5),
        ((64, 33), 32, 33 / 64),
        ((), 8, 1 / 8),
        ((5,), 1, 1.0),
        ((0,), 4, 1 / 4),
    ],
)
def test_balance(counts: tuple[int, ...], threads: int, share: float) -> None:
    assert balance(counts, threads) == share


@pytest.mark.parametrize(("counts", "text"), [(None, "at run time"), ((), "1"), ((16,), "16"), ((4, 8), "4, 8")])
def test_text(counts: tuple[int, ...] | None, text: str) -> None:
    assert tasks_text(counts) == text
