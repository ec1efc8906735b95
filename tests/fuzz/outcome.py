"""Outcome of one case, and the table of all outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.table import Table

Kind = Literal["right", "refused", "agreed", "unchecked", "wrong", "exception", "crash", "hang"]
KINDS: dict[Kind, str] = {
    "right": "accepted, and what it gave is right",
    "refused": "one error of this project",
    "agreed": "refused, by the reference too",
    "unchecked": "accepted, and no reference has an answer",
    "wrong": "accepted what must be refused, or gave a wrong result",
    "exception": "an exception that is not this project's",
    "crash": "the process died",
    "hang": "no answer in time",
}
FAILURES: frozenset[Kind] = frozenset({"wrong", "exception", "crash", "hang"})


@dataclass(frozen=True)
class Outcome:
    """The result of one case.

    Attributes:
        label: what was done to the input (the mutation's name).
        detail: the error, or why it is a failure.
        seed: gives the case again.
    """

    kind: Kind
    label: str
    detail: str = ""
    seed: int = -1

    @property
    def failed(self) -> bool:
        """True if this must not happen."""
        return self.kind in FAILURES


def outcome_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Counts by mutation and kind."""
    counts = Counter((outcome.label, outcome.kind) for outcome in outcomes)
    table = Table(title=title)
    table.add_column("mutation")
    for kind in KINDS:
        table.add_column(kind, justify="right", style="red" if kind in FAILURES else None)
    for label in sorted({outcome.label for outcome in outcomes}):
        table.add_row(label, *(str(counts[label, kind] or "") for kind in KINDS))
    table.add_section()
    totals = Counter(outcome.kind for outcome in outcomes)
    table.add_row("all", *(str(totals[kind]) for kind in KINDS), style="bold")
    return table


def error_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """Number of errors by class (the detail up to its first colon)."""
    counts = Counter(outcome.detail.partition(":")[0] for outcome in outcomes if outcome.kind == "refused")
    table = Table("error", "cases", title=title)
    for name, count in counts.most_common():
        table.add_row(name, str(count))
    return table
