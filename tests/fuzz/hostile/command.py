"""`python -m tests.fuzz hostile [--only TEXT]`: run the subjects whose name contains TEXT and print the outcomes."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tests.fuzz.hostile.running import run_subjects, steps
from tests.fuzz.hostile.subjects import subjects
from tests.fuzz.hostile.verdict import Verdict, subject_table, verdict_table

_SHOWN_RUNS = 8
_TOGETHER = 50  # subjects between reports of failures: all subjects take hours


def run(only: str | None, workers: int, console: Console) -> int:
    """Run the suite; 0 if nothing failed."""
    chosen = [number for number, each in enumerate(subjects()) if _is_chosen(each.name, only)]
    start = time.monotonic()
    verdicts: list[Verdict] = []
    with Progress(console=console) as progress:
        task = progress.add_task("hostile", total=steps(chosen))
        for first in range(0, len(chosen), _TOGETHER):
            some = chosen[first : first + _TOGETHER]
            with tempfile.TemporaryDirectory(prefix="tensorwright-hostile-") as folder:
                found = run_subjects(some, Path(folder), workers=workers, seen=lambda: progress.advance(task))
            _list("failed so far", (verdict for verdict in found if verdict.failed), console)
            verdicts += found
    _print(verdicts, time.monotonic() - start, console)
    return 1 if any(verdict.failed for verdict in verdicts) else 0


def _is_chosen(name: str, only: str | None) -> bool:
    """True if the name contains the text; "!torch" selects names without "torch"."""
    if only is None:
        return True
    return (only.removeprefix("!").lower() in name.lower()) != only.startswith("!")


def _print(verdicts: list[Verdict], seconds: float, console: Console) -> None:
    console.print(subject_table(verdicts))
    for frontend in dict.fromkeys(verdict.frontend for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.frontend == frontend]
        console.print(verdict_table(own, f"{frontend}: {len(own)} runs"))
    _list("failed", (verdict for verdict in verdicts if verdict.failed), console)
    _list("refused what the reference computes", (verdict for verdict in verdicts if verdict.stricter), console)
    counts = Counter(verdict.failed for verdict in verdicts)
    console.print(f"{len(verdicts)} runs in {seconds:.0f} s, {counts[True]} failed")


def _list(title: str, verdicts: Iterable[Verdict], console: Console) -> None:
    """Print a line for the runs of one subject with the same outcome."""
    groups: dict[tuple[str, str, str], list[Verdict]] = {}
    for each in verdicts:
        groups.setdefault((each.subject, each.theirs, each.ours), []).append(each)
    if groups:
        console.print(f"{title}:")
    for (subject, theirs, ours), own in groups.items():
        runs = "; ".join(each.run for each in own[:_SHOWN_RUNS]) + ("; ..." if len(own) > _SHOWN_RUNS else "")
        detail = " ".join(own[0].detail.split())[:300]
        text = f"  {subject} | reference {theirs} | {ours} | {len(own)} run(s): {runs} | {detail}"
        console.print(text, markup=False, soft_wrap=True, highlight=False)
