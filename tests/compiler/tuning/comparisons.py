"""One process that builds, comparisons in the model in few, and one a tuning: that chance is told from a gain, and
that what takes the place of a choice is compared too, `test_alternatives` shows by numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.tuning import in_model
from compiler.tuning.measuring.pool import MeasurementPool


@pytest.fixture(scope="module", autouse=True)
def few_turns(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two turns of each module, and short ones; one process that builds, as each takes a second or two to start."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.endswith("test_alternatives"):
            patch.setattr(in_model, "_MAX_COMPARISONS", 1)
        patch.setitem(MeasurementPool.__init__.__kwdefaults__ or {}, "builders", 1)
        patch.setattr(in_model, "PAIRS", 2)
        patch.setattr(in_model, "MIN_PAIRS", 2)
        patch.setattr(in_model, "TURN_SECONDS", 0.05)
        yield
