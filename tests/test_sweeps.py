"""Tests of the list of sweeps, tests/sweeps.txt."""

from __future__ import annotations

import pytest

from tests.conftest import UNUSED_PATTERNS


def test_each_pattern_names_a_test(pytestconfig: pytest.Config) -> None:
    """A test, since an error of collecting in a process of pytest-xdist would not name the line."""
    if pytestconfig.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        pytest.skip("only some tests were collected")
    assert not pytestconfig.stash[UNUSED_PATTERNS]
