"""Human-readable numbers, for the command line and the reports."""

from __future__ import annotations

import math
from collections.abc import Sequence


def format_seconds(seconds: float) -> str:
    """A time with three significant digits and a suitable unit: "812 ns", "3.41 us", "12.0 ms", "2.50 s"."""
    if not math.isfinite(seconds):
        return "-"
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if abs(seconds) >= factor * 0.9995:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def format_cost(cost: float, unit: str) -> str:
    """Text for the cost of a run: seconds ("s"), or cycles."""
    return format_seconds(cost) if unit == "s" else f"{cost:,.0f} cycles"


def format_bytes(count: float) -> str:
    """A size in binary units: "512 B", "1.50 KiB", "44.6 MiB"."""
    return f"{count:.0f} B" if abs(count) < 1024 else _in_units(count, 1024, ("KiB", "MiB", "GiB", "TiB"))


def format_count(count: float) -> str:
    """A count in decimal units: "950", "11.7 k", "3.64 G"."""
    if abs(count) < 1000:
        return f"{count:.0f}" if float(count).is_integer() else _three_digits(count)
    return _in_units(count, 1000, ("k", "M", "G", "T", "P"))


def _in_units(count: float, step: int, units: Sequence[str]) -> str:
    for unit in units:
        count /= step
        if abs(count) < step - 0.5 or unit == units[-1]:
            break
    return f"{_three_digits(count)} {unit}"


def format_operations(count: float) -> str:
    """Arithmetic operations: "3.63 GFLOP"."""
    number, _, unit = format_count(count).partition(" ")
    return f"{number} {unit}FLOP"


def format_rate(per_second: float) -> str:
    """Arithmetic operations per second: "181 GFLOP/s"."""
    return f"{format_operations(per_second)}/s"


def format_percent(share: float) -> str:
    """A fraction of one as a percentage: 0.123 is "12.3 %"."""
    return f"{100 * share:.1f} %"


def shorten(text: str, length: int = 60) -> str:
    """`text` shortened in the middle to at most `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 3) * 2 // 3
    return f"{text[:head]}...{text[len(text) - (length - 3 - head) :]}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    digits = 2 if magnitude < 9.995 else 1 if magnitude < 99.95 else 0
    return f"{value:.{digits}f}"


def plural(count: int, noun: str) -> str:
    """A count with a noun: "1 thread", "2 threads"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
