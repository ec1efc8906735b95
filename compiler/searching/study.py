"""The trials in optuna's storage: candidates found by a search are kept there, and another run continues from them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compiler.errors import OptionError, StorageError
from compiler.searching.front import Candidate
from compiler.searching.knobs import Config, Knob, Option
from compiler.support.optional import optional_module

_NAME = "tensorwright-search"
_POPULATION = 16


class Study:
    """Trials of one search; a trial is a candidate.

    Args:
        identity: identity of the net, space, budget and target: a storage belongs to one search.
        storage: an SQLite file, created if missing; None keeps trials in memory.

    Raises:
        MissingDependencyError: optuna is not installed.
        StorageError: the file cannot be used.
        OptionError: it holds another search.
    """

    def __init__(
        self,
        knobs: Sequence[Knob],
        main: str,
        identity: str,
        *,
        sampler: str,
        seed: int,
        storage: str | os.PathLike[str] | None,
    ) -> None:
        self._optuna = optional_module("optuna", "search", "proposes candidates")
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._knobs, self._main, self._sampler, self._seed = list(knobs), main, sampler, seed
        self._study = self._opened(storage)
        stored_identity = self._study.user_attrs.get("identity")
        if stored_identity is None:
            self._study.set_user_attr("identity", identity)
        elif stored_identity != identity:
            raise OptionError(
                f"storage={str(storage)!r} holds a search of another net, space, budget, target or seed",
                "name another file, or remove that one",
            )
        self._left_over()

    def _opened(self, storage: str | os.PathLike[str] | None) -> Any:
        url = None
        if storage is not None:
            path = Path(storage)
            if not path.parent.is_dir():
                raise StorageError(f"storage={str(storage)!r}: there is no folder {path.parent}")
            url = f"sqlite:///{path.resolve()}"
        try:
            return self._optuna.create_study(
                storage=url, study_name=_NAME, directions=["maximize", "minimize"], load_if_exists=True
            )
        except Exception as error:
            raise StorageError(
                f"storage={str(storage)!r} cannot be used: {type(error).__name__}: {str(error).splitlines()[0]}",
                "name a file of another search, or a new one",
            ) from error

    def _left_over(self) -> None:
        """End trials left over by a killed run: they are proposed again."""
        state = self._optuna.trial.TrialState
        for trial in self._study.get_trials(states=(state.RUNNING,)):
            self._study.tell(trial.number, state=state.FAIL)

    def add_spent(self, seconds: float, cpu_seconds: float) -> tuple[float, float]:
        """Add the duration of a run; return the total over all runs of this search."""
        before = self._study.user_attrs.get("spent", (0.0, 0.0))
        total = (before[0] + seconds, before[1] + cpu_seconds)
        self._study.set_user_attr("spent", total)
        return total

    def finished(self) -> list[Candidate]:
        """The known candidates."""
        state = self._optuna.trial.TrialState
        trials = self._study.get_trials(deepcopy=False, states=(state.COMPLETE,))
        return [self._candidate(trial) for trial in trials]

    def _candidate(self, trial: Any) -> Candidate:
        config = {knob.name: knob.options[int(trial.params[knob.name])] for knob in self._knobs}
        costs = {str(name): float(cost) for name, cost in trial.user_attrs["costs"].items()}
        return Candidate(config, float(trial.values[0]), costs, float(trial.user_attrs["excess"]))

    def record(self, config: Config, evaluate: Callable[[], Candidate]) -> Candidate:
        """Evaluate a config as a trial; if that fails, the trial is marked as failed and the error is re-raised."""
        self._study.enqueue_trial({knob.name: knob.options.index(config[knob.name]) for knob in self._knobs})
        return self.finish(self._asked(), evaluate)

    def proposals(self, count: int) -> list[tuple[Any, dict[str, Option]]]:
        """(trial, config) that the sampler would try next; each trial must be finished. The same earlier trials yield
        the same proposals."""
        proposals = []
        for _ in range(count):
            trial = self._asked()
            proposals.append((trial, {knob.name: knob.options[int(trial.params[knob.name])] for knob in self._knobs}))
        return proposals

    def finish(self, trial: Any, evaluate: Callable[[], Candidate]) -> Candidate:
        """Evaluate a trial and store the result."""
        try:
            candidate = evaluate()
        except BaseException:
            self.fail(trial)
            raise
        trial.set_user_attr("costs", candidate.costs)
        trial.set_user_attr("excess", candidate.excess)
        with self._quiet():
            trial.set_constraint("budget", candidate.excess)
        self._study.tell(trial, [candidate.score, candidate.costs[self._main]])
        return candidate

    def fail(self, trial: Any) -> None:
        """End a trial without values; does nothing if it has already ended."""
        self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def _asked(self) -> Any:
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = self._made_sampler(self._seed + number)
        return self._study.ask(self._distributions())

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Silence optuna's warnings about experimental features."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            yield

    def _made_sampler(self, seed: int) -> Any:
        """A new sampler for each trial, so that its proposals only depend on earlier trials, also in a resumed run."""
        samplers = self._optuna.samplers
        with self._quiet():
            if self._sampler == "tpe":
                return samplers.TPESampler(seed=seed, multivariate=True)
            return samplers.NSGAIISampler(seed=seed, population_size=_POPULATION)

    def _distributions(self) -> dict[str, Any]:
        distributions = self._optuna.distributions
        return {
            knob.name: distributions.IntDistribution(0, len(knob.options) - 1)
            if knob.is_ordered
            else distributions.CategoricalDistribution(list(range(len(knob.options))))
            for knob in self._knobs
        }
