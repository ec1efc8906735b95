"""Settings of the tests of compression."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compiler.profiling import timing


@pytest.fixture(scope="package", autouse=True)
def few_runs() -> Iterator[None]:
    """Use three runs for each time in a report; tests only check that there is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_REPORTED_RUNS", 3)
        yield
