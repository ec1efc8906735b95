"""Comparisons in the model in few processes: that chance is told from a gain, `test_alternatives` shows by numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.tuning import in_model


@pytest.fixture(scope="module", autouse=True)
def few_turns() -> Iterator[None]:
    """Two turns of each module, and short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(in_model, "PAIRS", 2)
        patch.setattr(in_model, "LEAST_PAIRS", 2)
        patch.setattr(in_model, "TURN_SECONDS", 0.05)
        yield
