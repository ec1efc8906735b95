"""Outcomes of one run: the reference's and ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.markup import escape
from rich.table import Table

Theirs = Literal["computes", "refuses", "crashes", "has no such operator"]
Ours = Literal[
    "equal",
    "refused",
    "refused when compiled",
    "computed alone",
    "documented",
    "differs",
    "exception",
    "nondeterministic",
    "written beside",
    "guard hit",
    "crash",
    "hang",
]
FAILURES: frozenset[Ours] = frozenset(
    {"computed alone", "differs", "exception", "nondeterministic", "written beside", "guard hit", "crash", "hang"}
)
MEANING: dict[Ours, str] = {
    "equal": "the reference's numbers",
    "refused": "an InputError",
    "refused when compiled": "an error when the model was compiled",
    "computed alone": "computes where the reference refuses, and no documentation says what",
    "documented": "computes where the reference does not, as documented",
    "differs": "other numbers than the reference",
    "exception": "an error that is not one of inputs or models",
    "nondeterministic": "two runs differ: memory beside a buffer, or never written, was read",
    "written beside": "memory beside a buffer was written",
    "guard hit": "an inaccessible page was touched",
    "crash": "the process died",
    "hang": "no answer in time",
}


@dataclass(frozen=True)
class Verdict:
    """One run of one subject.

    Attributes:
        subject: its name.
        run: the run's label.
        detail: the error, or why it is a failure.
    """

    frontend: Literal["onnx", "torch"]
    subject: str
    run: str
    theirs: Theirs
    ours: Ours
    detail: str = ""

    @property
    def failed(self) -> bool:
        """True if this must not happen."""
        return self.ours in FAILURES

    @property
    def stricter(self) -> bool:
        """True if we refuse inputs that the reference accepts, which does not count as a failure."""
        return self.theirs == "computes" and self.ours.startswith("refused")


def verdict_table(verdicts: Sequence[Verdict], title: str) -> Table:
    """Counts of our outcomes by the reference's outcomes."""
    references: tuple[Theirs, ...] = ("computes", "refuses", "crashes", "has no such operator")
    table = Table("ours", *(f"reference {each}" for each in references), "meaning", title=title)
    counts = Counter((verdict.theirs, verdict.ours) for verdict in verdicts)
    for ours, meaning in MEANING.items():
        numbers = [str(counts[theirs, ours] or "") for theirs in references]
        table.add_row(ours, *numbers, meaning, style="red" if ours in FAILURES else None)
    table.add_section()
    table.add_row("all", *(str(sum(verdict.theirs == theirs for verdict in verdicts)) for theirs in references))
    return table


def subject_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each subject: number of runs by outcome."""
    kinds = [ours for ours in MEANING if any(verdict.ours == ours for verdict in verdicts)]
    table = Table("subject", "runs", "reference refuses", title="by subject")
    for ours in kinds:
        table.add_column(ours, justify="right", style="red" if ours in FAILURES else None)
    for subject in dict.fromkeys(verdict.subject for verdict in verdicts):
        own = [verdict for verdict in verdicts if verdict.subject == subject]
        counts = Counter(verdict.ours for verdict in own)
        refused = sum(verdict.theirs != "computes" for verdict in own)
        table.add_row(escape(subject), str(len(own)), str(refused), *(str(counts[ours] or "") for ours in kinds))
    return table
