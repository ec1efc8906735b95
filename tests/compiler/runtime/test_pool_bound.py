"""Memory that stays allocated after runs of many sizes."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.runtime import library
from compiler.runtime.library import PoolBound, release_memory
from tests.compiler.runtime.building import MEGABYTE, squares


def test_runs_of_many_sizes_do_not_leave_the_memory_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def most(bound: PoolBound) -> int:
        """The largest number of allocated bytes after runs of 1, 2, ... 20 rows."""
        monkeypatch.setattr("compiler.runtime.executor.POOL", bound)
        release_memory()
        before, found = bound.allocated(), 0
        for rows in range(1, 21):
            assert np.all(module.run({"x": x[:rows]})["y"] == MEGABYTE // 4)
            found = max(found, bound.allocated() - before)
        return found

    if not PoolBound().allocated():
        pytest.skip("the C library does not tell what is allocated")
    module, x = squares(), np.ones((20, MEGABYTE // 4), np.float32)
    unbound = PoolBound()
    monkeypatch.setattr(unbound, "ran", lambda *given: None)
    assert most(unbound) > 200 * MEGABYTE  # 1 + 2 + ... + 20
    assert most(PoolBound()) < 120 * MEGABYTE
    release_memory()


@pytest.mark.parametrize("known", [True, False])
def test_the_pool_is_cleared_when_it_keeps_too_much(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[int] = []
    allocated = [0]
    monkeypatch.setattr(library, "release_memory", lambda: cleared.append(allocated[0] // MEGABYTE))
    bound = PoolBound()
    bound._read = (lambda: allocated[0]) if known else None
    for size in (1, 2, 1, *range(3, 21)):
        before = bound.allocated()
        allocated[0] += 0 if size == 1 and bound._sizes == {1, 2} else 10 * MEGABYTE
        bound.ran(size, before)
    # 70 MB are above 64; after that, the sum begins anew. Where nothing is known, eight sizes are kept.
    assert cleared == ([70, 140] if known else [90, 180])


def test_a_model_of_large_activations_keeps_a_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared: list[int] = []
    allocated = [0]
    monkeypatch.setattr(library, "release_memory", lambda: cleared.append(allocated[0] // MEGABYTE))
    bound = PoolBound()
    bound._read = lambda: allocated[0]
    for size in range(6):
        before = bound.allocated()
        allocated[0] += 500 * MEGABYTE
        bound.ran(size, before)
    assert cleared == [2500]
