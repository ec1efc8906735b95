"""Tests of the list of sweeps, tests/sweeps.txt."""

from __future__ import annotations

import pytest

from targets import cpuinfo
from tests.conftest import UNUSED_PATTERNS

# Parameters of tests that other processors do not have: part of a pattern, and the feature that it needs.
_FEATURES = {"x86-64-v4": "avx512f", "dots-": "avx512bf16", "znver4": "avx512vnni"}


def test_each_pattern_names_a_test(pytestconfig: pytest.Config) -> None:
    """A test, since an error of collecting in a process of pytest-xdist would not name the line."""
    if pytestconfig.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        pytest.skip("only some tests were collected")
    lacking = [name for name, feature in _FEATURES.items() if not cpuinfo.supports(feature)]
    unused = pytestconfig.stash[UNUSED_PATTERNS]
    assert not {pattern for pattern in unused if not any(name in pattern for name in lacking)}
