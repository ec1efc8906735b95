from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.compiler.cli.running import isolated_consoles


@pytest.fixture(autouse=True)
def _own_consoles() -> Iterator[None]:
    """Commands that tests call here write to the streams of that test alone."""
    with isolated_consoles():
        yield
