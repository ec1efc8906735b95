"""Results of `benchmarks.serving` next to its goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

OURS, ONE_WORKER = "ours over HTTP", "ours over HTTP, 1 worker"
TRITON, TRITON_ONNX_RUNTIME = "Triton with our backend", "Triton with ONNX Runtime"
IN_PROCESS = "in process"
Found = Mapping[str, Any]


def print_summary(found: Found) -> None:
    """Print one line per measured figure: the goal and the result."""
    print(f"\n{'figure':74}{'goal':>8}  found")
    for name, goal, measure in _FIGURES:
        value = measure(found)
        if value:
            print(f"{name:74}{goal:>8}  {value}")


def _best(found: Found, model: str, part: str) -> float | None:
    """Return the highest requests per second of contestants whose names contain a text, in any round."""
    rounds = [max(values) for name, values in found.get("throughput", {}).get(model, {}).items() if part in name]
    return max(rounds, default=None)


def _ratio(model: str, part: str, other: str) -> Callable[[Found], str]:
    def measure(found: Found) -> str:
        one, two = _best(found, model, part), _best(found, model, other)
        return f"{one / two:.2f}" if one and two else ""

    return measure


def _p99(model: str) -> Callable[[Found], str]:
    def measure(found: Found) -> str:
        ratios: Sequence[float] = found.get("at_80_percent", {}).get(model, {}).get("p99_ratios", ())
        listed = ", ".join(f"{each:.2g}" for each in ratios)
        return f"{median(ratios):.2g} ({listed})" if ratios else ""

    return measure


def _overload(found: Found) -> str:
    values = found.get("overload")
    if not values:
        return ""
    return f"{values['within']:.1%} in time, {values['refused_within_10ms']:.1%} refused within 10 ms"


def _minute(found: Found) -> str:
    values = found.get("minute")
    if not values:
        return ""
    before, after = values["memory_mb"]
    return (
        f"{values['in_time']:.1%} in time, {values['refused_within_10ms']:.1%} refused within 10 ms, "
        f"{before:.0f} to {after:.0f} MB"
    )


def _ready(found: Found) -> str:
    seconds = found.get("ready_seconds")
    return f"{seconds:.2f} s" if seconds else ""


def _share(task: str) -> Callable[[Found], str]:
    """Return the least cost of a row that is as accurate as the large model, which comes first."""

    def measure(found: Found) -> str:
        rows = [each for each in found.get("cascades", ()) if each["task"] == task]
        equal = [each for each in rows[1:] if each["accuracy"] >= rows[0]["accuracy"]]
        if not equal:
            return ""
        best = min(equal, key=lambda each: float(each["share"]))
        return f"{best['share']:.2f} ({best['way']})"

    return measure


_FIGURES: tuple[tuple[str, str, Callable[[Found], str]], ...] = (
    ("HTTP / best in process, MiniLM at 8 connections", ">= 0.9", _ratio("minilm", OURS, IN_PROCESS)),
    ("the same with one worker", ">= 0.9", _ratio("minilm", ONE_WORKER, IN_PROCESS)),
    ("HTTP, tiny net at 32 connections / Triton with our backend", ">= 0.8", _ratio("tiny", OURS, TRITON)),
    ("Triton with our backend / with ONNX Runtime, MiniLM", ">= 1.3", _ratio("minilm", TRITON, TRITON_ONNX_RUNTIME)),
    ("the same, tiny net", ">= 3", _ratio("tiny", TRITON, TRITON_ONNX_RUNTIME)),
    ("p99 at 80 % load / first in first out, MiniLM (median of the rounds)", "<= 0.85", _p99("minilm")),
    ("the same, a net of 100 MB of weights", "<= 0.85", _p99("wide")),
    ("3 times overload, in process", "all", _overload),
    ("3 times overload, a minute over HTTP", "all", _minute),
    ("least cost at the large model's accuracy, digits", "<= 0.5", _share("digits")),
    ("the same, retrieval with MiniLM", "<= 0.5", _share("retrieval")),
    ("ready after the command", "<= 1 s", _ready),
)
