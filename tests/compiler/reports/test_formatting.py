from __future__ import annotations

import math

import pytest

from compiler.reports.formatting import (
    format_bytes,
    format_count,
    format_operations,
    format_percent,
    format_rate,
    format_seconds,
    shorten,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (3.4e-8, "34 ns"),
        (8.12e-7, "812 ns"),
        (3.414e-6, "3.41 us"),
        (0.012, "12.0 ms"),
        (0.99999, "1.00 s"),
        (125.4, "125 s"),
        (-2e-3, "-2.00 ms"),
        (math.inf, "-"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (46_765_568, "44.6 MiB"), (2**41, "2.00 TiB")]
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_counts_rates_shares() -> None:
    assert format_count(950) == "950"
    assert format_count(11_689_512) == "11.7 M"
    assert format_count(3.63e9) == "3.63 G"
    assert format_count(999_600) == "1.00 M"
    assert format_rate(181.2e9) == "181 GFLOP/s"
    assert format_operations(144) == "144 FLOP"
    assert format_operations(3.63e9) == "3.63 GFLOP"
    assert format_rate(12.0) == "12 FLOP/s"
    assert format_percent(0.1234) == "12.3 %"


def test_long_names_are_cut_in_their_middle() -> None:
    assert shorten("short", 10) == "short"
    assert shorten("abcdefghijklmnop", 10) == "abcd...nop"
    assert len(shorten("x" * 500)) == 60
