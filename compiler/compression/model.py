"""Result of the compression techniques."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compiler.compression.report import CompressionReport
from compiler.frontends.imported_model import ImportedModel


@dataclass(frozen=True, kw_only=True)
class CompressedModel(ImportedModel):
    """A compressed model, to be given to `tensorwright.compile` or to the next technique.

    Attributes:
        name: name of the model it was made from.
        report: what was done and what it cost; `report.save("report.html")`.
        trained: the torch module behind it, with its masks, where it was made of one; `distill` trains it further.
        measured: by what, on what and on how many threads `report.after` was measured.
    """

    name: str
    report: CompressionReport
    trained: Any = None
    measured: Any = None

    def __repr__(self) -> str:
        return f"<CompressedModel {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


CompressedModel.__module__ = "tensorwright"  # where it is imported from: for reprs, tracebacks and pickles
