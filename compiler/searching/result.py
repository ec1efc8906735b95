"""Result of `search`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compiler.compression.variants import VariantsReport, write_variants
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.runtime import Module
from compiler.searching.cost import excess
from compiler.searching.front import Candidate, pareto
from compiler.searching.settings import check_budget

if TYPE_CHECKING:
    from compiler.searching.finish import Finished, Finisher
    from compiler.searching.report import SearchReport

_FAMILY = {"large": 1.0, "small": 0.0, "middle": 0.5}  # places on the front within the limit


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search.

    Attributes:
        name: name of the model that was searched.
        report: the front, the chosen net beside the one as it came, and what each choice cost.
        chosen: the candidate that was finished.
        model: the chosen net, for `tensorwright.compile` or a further technique.
        module: it compiled for the target.
        candidates: all that were scored.
    """

    name: str
    report: SearchReport
    chosen: Candidate
    model: ImportedModel
    module: Module
    _finisher: Finisher
    candidates: tuple[Candidate, ...]

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in score and in the budget's first cost, the cheapest first."""
        return pareto(self.candidates, self.report.cost)

    def finish(self, candidate: Candidate) -> Finished:
        """Train, quantize, verify and compile another candidate. Raises UserError, as `search` does."""
        return self._finisher.finish(candidate.config)

    def write_family(
        self,
        folder: str | os.PathLike[str],
        budgets: Mapping[str, Mapping[str, float]] | None = None,
        *,
        max_drop: float = 0.05,
    ) -> VariantsReport:
        """Write several sub-nets of the same shared weights as variants of one model, for a server.

        Args:
            folder: as `tensorwright.write_variants` takes it.
            budgets: of each variant, by its name; None: "small", "middle" and "large" are the cheapest net of the front
                that loses at most `max_drop`, the dearest one, and the one halfway between, as far as they differ.
            max_drop: how much of the net's score as it came a variant may lose.

        Raises:
            OptionError: a budget that no candidate meets.
            UserError: of finishing and compiling.
        """
        chosen = self._family(max_drop) if budgets is None else self._within(budgets)
        models = {name: self.finish(candidate).model for name, candidate in chosen.items()}
        job = self._finisher.job
        return write_variants(
            job.model,
            folder,
            models,
            calibration=job.samples or None,
            evaluate=job.evaluate,
            max_drop=max_drop,
            target=job.target,
            threads=job.threads,
            progress=None,
        )

    def _family(self, max_drop: float) -> dict[str, Candidate]:
        original = self.report.original.score
        front = [each for each in self.front if original - each.score <= max_drop * abs(original)] or self.front[-1:]
        family: dict[str, Candidate] = {}
        for name, place in _FAMILY.items():  # the largest first: of a short front some are the same net
            candidate = front[round(place * (len(front) - 1))]
            if candidate not in family.values():
                family[name] = candidate
        return family

    def _within(self, budgets: Mapping[str, Mapping[str, float]]) -> dict[str, Candidate]:
        found = {}
        for name, given in budgets.items():
            limits = check_budget(given)
            if unknown := [limit for limit in limits if limit not in self.chosen.costs]:
                raise OptionError(f"budgets[{name!r}] has {unknown[0]!r}", "use what the search's own budget limits")
            fits = [each for each in self.candidates if excess(each.costs, limits) <= 0]
            if not fits:
                raise OptionError(f"no candidate meets budgets[{name!r}]", "allow more, or search with that budget")
            found[name] = max(fits, key=lambda each: (each.score, -each.costs[self.report.cost]))
        return found

    def __repr__(self) -> str:
        return f"<SearchResult {self.name!r}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


SearchResult.__module__ = "tensorwright"  # where it is imported from: for reprs, tracebacks and pickles
