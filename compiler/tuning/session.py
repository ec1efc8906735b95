"""The tuning loop over the tasks of a model: propose, build, measure, record, learn; then a final comparison of the
leaders.

The next trials go to the task for which a second of tuning is expected to save the model the most time.

As in Ansor's task scheduler, the expectation looks back (the gain of the last trials) and ahead (the possible gain); a
task is finished when its space is exhausted, when nothing was gained for long, or when its time is negligible.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from compiler.records.record_set import MIN_GAIN, MIN_GAIN_OF_ALTERNATIVES, deduplicated
from compiler.records.records import ChosenKernel, ModelLine, Record, RecordWriter
from compiler.tuning.cost_models import CostModel, Sample, Subject
from compiler.tuning.lower_bounds import measure_peaks, min_seconds
from compiler.tuning.measuring.messages import Effort, Outcome, summed_up
from compiler.tuning.measuring.pool import CandidatePool, Trial
from compiler.tuning.search import Search, serves
from compiler.tuning.state import Limits, Progress, SearchCost, TaskState
from schedules.config import Config
from targets.measure import Measure

if TYPE_CHECKING:
    import targets
    from compiler.tuning.in_model import Compared
    from compiler.tuning.tasks import Task

BATCH = 16
FIRST_BATCHES = 8
"""Batch size of a task's first `EARLY` trials, from which the model learns most."""
EARLY = 32
LEADERS = 3
_ROUNDS = 9  # of the final comparison
_BEATEN = 1.03  # relative to a lower bound: more than the noise of two measurements
_NEAR = 1.1  # slower alternatives than this, relative to the fastest, are no longer compared
_FINAL_EFFORT = Effort(0.02)


@dataclass(frozen=True)
class Origin:
    """Origin of records: the devices, and the fingerprint and name of the tasks' model."""

    device: str = "local"
    model_key: str = ""
    model_name: str = ""


class Session:
    """Tunes tasks on a pool's devices."""

    def __init__(
        self,
        target: targets.Target,
        tasks: Sequence[Task],
        pool: CandidatePool,
        writer: RecordWriter,
        cost_model: CostModel,
        search: Search,
        *,
        origin: Origin = Origin(),
        notify: Callable[[Progress], None] | None = None,
    ) -> None:
        self._target, self._pool, self._writer = target, pool, writer
        self._model, self._search, self._origin = cost_model, search, origin
        self._notify = notify or (lambda _: None)
        for task in tasks:
            task.tunable = serves(search, task)
        self.states = [TaskState(task, target.machine, margin=pool.margin_of_alternatives) for task in tasks]
        _join_alternatives(self.states)
        self._samples: list[Sample] = []
        self._began = time.monotonic()
        self.search_began = self._began  # when the first config after the defaults was tried: limits count from here
        self.progress = Progress(self.states)
        self.problems: list[str] = []
        self._unprepared: set[str] = set()
        self.cost = SearchCost()
        self.predictions: list[tuple[str, float, float]] = []  # (task, score, seconds) of proposed configs

    @property
    def measure(self) -> Measure:
        """Measure of this session's numbers."""
        return self._pool.measure

    @property
    def method(self) -> Literal["serial", "parallel"]:
        """Method of timing; see `records.Record.method`."""
        return "serial" if self._pool.serial else "parallel"

    def resume(self, records: Sequence[Record]) -> int:
        """Load earlier trials of these tasks on this target, measured the same way; return their number."""
        states, comparable = {state.task.key: state for state in self.states}, (self.measure, self.method)
        count = 0
        for record in deduplicated(records):
            state = states.get(record.task)
            config = Config.of(record.config)
            if state is None or record.target != self._writer.target or record.comparable != comparable:
                continue
            if record.in_model:
                continue  # no isolated time of the kernel
            if config in state.task.space:
                state.note(config, record.seconds if record.status == "ok" else None, new=False)
                self._samples.append(Sample(subject_of(state), config, record.cost, self.measure))
                count += 1
        self.progress.resumed = count
        return count

    def try_configs(self, state: TaskState, configs: Sequence[Config]) -> None:
        """Measure and record those configs of a task that were not tried yet, regardless of the budget."""
        self._prepare([state])
        if not state.finished:
            self._try([(state, config) for config in configs if config not in state.results], None)

    def run(self, limits: Limits) -> None:
        """Measure the defaults, search until a limit is reached or nothing can be gained, compare the leaders."""
        self._began = time.monotonic()
        self.progress.limit_trials = limits.trials
        self._measure_defaults()
        self.progress.before = self._model_seconds(default=True)
        if not self.measure.deterministic:  # a cost model does not know the machine's limit
            self._find_lower_bounds()
        self._search_all(limits)
        self._compare_leaders()
        self._report("searched", None)

    def _find_lower_bounds(self) -> None:
        """Find the lower bounds of the tasks; without them (the device does not report its peaks) the search stops by
        other criteria."""
        self._report("measure the machine", None)
        machine = self._target.machine
        peaks, error = measure_peaks(self._pool, machine)
        if error:
            self.problems.append(f"the device's own speed could not be measured: {error}")
        for state in self.states:
            state.lower_bound = min_seconds(state.task, machine, peaks)
        self._check_lower_bounds()

    def _check_lower_bounds(self) -> None:
        """Discard lower bounds if a kernel beats them: other programs disturbed the measurement of peaks."""
        if any((state.of_limit or 0.0) > _BEATEN for state in self.states):
            self.problems.append("a kernel was faster than the device's measured peak, so lower bounds are not used")
            for state in self.states:
                state.lower_bound = 0.0

    def _search_all(self, limits: Limits) -> None:
        trials, processor = self.progress.trials, self._processor_seconds()
        self.search_began = began = time.monotonic()
        if limits.seconds is not None:
            self.progress.limit_seconds = began - self._began + limits.seconds
        try:
            while not self._reached(limits):
                state = next_task([each for each in self.states if each.task.tunable])
                if state is None:
                    break
                self._round(state, limits)
        finally:
            spent = {name: now - processor[name] for name, now in self._processor_seconds().items()}
            self.cost = SearchCost(self.progress.trials - trials, time.monotonic() - began, spent)

    def _processor_seconds(self) -> dict[str, float]:
        return {"search": time.process_time(), **self._pool.processor_seconds()}

    def _reached(self, limits: Limits) -> bool:
        over_time = (
            limits.seconds is not None and time.monotonic() - self.search_began >= limits.seconds - limits.reserve
        )
        return over_time or (limits.trials is not None and self.progress.trials >= limits.trials)

    def _measure_defaults(self) -> None:
        """Run trial 0 of every task that has none yet."""
        self._report("build the references", None)
        missing = [state for state in self.states if state.default_seconds is None]
        self._prepare(missing)
        self._report("measure the defaults", None)
        failures = self._try([(state, state.task.default) for state in missing if not state.finished], None)
        for state in missing:
            if state.default_seconds is None and not state.finished:
                self._give_up(state, f"its default could not be measured: {failures[state.task.key]}")

    def _prepare(self, states: Sequence[TaskState]) -> None:
        for state in states:
            self._pool.define(state.task.kernel)
        errors = self._pool.prepare([state.task.key for state in states])
        for state in states:
            if state.task.key in errors:
                self._unprepared.add(state.task.key)
                self._give_up(state, errors[state.task.key])

    def _give_up(self, state: TaskState, reason: str) -> None:
        state.finished = reason
        self.problems.append(f"{state.task.names[0]}: {reason}")

    def _round(self, state: TaskState, limits: Limits) -> None:
        subject = subject_of(state)
        count = FIRST_BATCHES if state.trials < EARLY else BATCH
        if limits.trials is not None:
            count = min(count, limits.trials - self.progress.trials)
        configs = self._search.propose(state, lambda configs: self._model.predict(subject, configs), count)
        if not configs:
            state.finished = "every config was tried"
            return
        self._report("search", state)
        self._prepare([state])
        scores = self._model.predict(subject, configs)
        self._try([(state, config) for config in configs], state.best_seconds)
        for config, score in zip(configs, scores, strict=True):
            seconds = state.results.get(config)
            if seconds is not None:
                self.predictions.append((state.task.key, float(score), seconds))
        self._model.update(self._samples)
        self._check_lower_bounds()

    def _try(self, chosen: Sequence[tuple[TaskState, Config]], give_up_above: float | None) -> dict[str, str]:
        """Measure and record configs; return the last failure of each task, by key."""
        states = {state.task.key: state for state, _ in chosen}
        failures: dict[str, str] = {}

        def emit(trial: Trial, outcome: Outcome) -> None:
            state = states[trial.key]
            if outcome.status != "ok":
                failures[trial.key] = f"{outcome.status}: {outcome.note}"
            if state.task.tunable:
                self._writer.append(self._record(state, outcome))
                self._samples.append(Sample(subject_of(state), outcome.config, outcome.seconds, self.measure))
            state.note(outcome.config, outcome.seconds, new=state.task.tunable)
            state.keep_leader(outcome, LEADERS)
            self.progress.trials += state.task.tunable
            self._report(self.progress.phase, state)

        effort = Effort(give_up_above=give_up_above)
        began = time.monotonic()
        self._pool.trials([Trial(state.task.key, config, effort) for state, config in chosen], emit)
        if not self.measure.deterministic:  # otherwise the clock must not influence the next task
            for state in states.values():
                state.seconds += (time.monotonic() - began) / len(states)
        return failures

    def _compare_leaders(self) -> None:
        """Time the default and the fastest configs of each task alternately; these records decide."""
        won = [state for state in self.states if _has_a_leader(state)]
        self._report("compare the leaders", None)
        self._rebuild_leaders(won)
        for state in won:
            least = 1 if state.contested else 2
            if len(state.leaders) < least or state.leaders[0].config != state.task.default:
                continue
            self._report("compare the leaders", state)
            outcomes = self._pool.compare(state.task.key, state.leaders, _FINAL_EFFORT, _ROUNDS)
            for outcome in outcomes:
                if outcome.seconds is not None:
                    self._writer.append(self._record(state, outcome, compared=True))
            self._settle(state, outcomes)

    def _rebuild_leaders(self, states: Sequence[TaskState]) -> None:
        """Build candidates of the comparison that were measured by an earlier run, and the defaults."""
        missing: list[tuple[TaskState, Trial]] = []
        for state in states:
            built = {each.config for each in state.leaders}
            configs = [state.task.default, *state.fastest_configs(LEADERS)]
            missing += [(state, Trial(state.task.key, each)) for each in dict.fromkeys(configs) if each not in built]
        self._prepare([state for state, _ in missing])
        ready = [(state, trial) for state, trial in missing if state.task.key not in self._unprepared]
        outcomes = self._pool.trials([trial for _, trial in ready], lambda _trial, _outcome: None)
        for (state, _), outcome in zip(ready, outcomes, strict=True):
            state.keep_leader(outcome, LEADERS)

    def _settle(self, state: TaskState, outcomes: Sequence[Outcome]) -> None:
        measured = [each for each in outcomes if each.seconds is not None]
        if not measured or measured[0].config != state.task.default:
            return
        default = measured[0]
        fastest = min(measured, key=lambda each: each.seconds or 0.0)
        assert default.seconds is not None
        assert fastest.seconds is not None
        margin = 1 + max(self._pool.margin, fastest.spread, default.spread)
        chosen = fastest if fastest.seconds * margin < default.seconds else default
        state.results[state.task.default] = default.seconds
        state.best = (chosen.config, chosen.seconds or default.seconds)

    def announce(self, phase: str) -> None:
        """Report the current phase."""
        self._report(phase, None)

    def settle_in_model(self, compared: Compared) -> int:
        """Use the times of kernels in the model, untuned and with the choices. Choices that do not win are dropped.

        A choice that has won before stays unless it is slower now: chance is decided only once.

        Returns:
            The number of dropped choices.
        """
        lost = 0
        for state in self.states:
            if not state.is_changed or state.task.key not in compared.untuned.kernels:
                continue
            chosen = state.fastest_alternative
            if chosen.task.key not in compared.tuned.kernels:
                continue
            assert chosen.best is not None
            default = summed_up(state.task.default, compared.untuned.kernels[state.task.key])
            challenger = summed_up(chosen.best[0], compared.tuned.kernels[chosen.task.key])
            for each, outcome in ((state, default), (chosen, challenger)):
                self._writer.append(self._record(each, outcome, compared=True, in_model=True))
            default_seconds, challenger_seconds = default.seconds or 0.0, challenger.seconds or 0.0
            least = MIN_GAIN if chosen is state else MIN_GAIN_OF_ALTERNATIVES
            margin = 1 + max(least, default.spread, challenger.spread)
            known = state.proven == (chosen.task.key, challenger.config)
            wins = challenger_seconds < default_seconds if known else challenger_seconds * margin < default_seconds
            lost += not wins
            state.proven = (chosen.task.key, challenger.config) if wins else None
            # Isolated times are only compared with isolated times: times in the model contribute their ratio.
            alone = state.default_seconds or default_seconds
            default_seconds, challenger_seconds = alone, alone * challenger_seconds / default_seconds
            state.best = (state.task.default, default_seconds)
            if wins:
                chosen.best = (challenger.config, challenger_seconds)
            elif chosen is not state:
                chosen.best = (challenger.config, max(default_seconds, challenger_seconds))
        return lost

    def keep_defaults(self) -> None:
        """Drop all choices."""
        for state in self.states:
            if state.is_changed:
                state.keep_default()

    def conclude(self, choices: Sequence[ChosenKernel], compared: Compared | None) -> None:
        """Record the choices for the model; `compared` if whole runs were compared."""
        self._writer.append(
            ModelLine(
                target=self._writer.target,
                model=self._origin.model_key,
                name=self._origin.model_name,
                choices=tuple(choices),
                untuned=None if compared is None else compared.untuned.latency,
                tuned=None if compared is None else compared.tuned.latency,
                spread=0.0 if compared is None else round(compared.spread, 4),
                method=self.method,
                measure=self.measure,
                device=self._origin.device,
                unix_time=int(time.time()),
            )
        )

    def _record(self, state: TaskState, outcome: Outcome, *, compared: bool = False, in_model: bool = False) -> Record:
        return Record(
            target=self._writer.target,
            rule=state.task.rule.name,
            rule_version=state.task.rule.version,
            workload=state.task.workload.key(),
            config=dict(outcome.config),
            status=outcome.status,
            seconds=outcome.seconds,
            spread=round(outcome.spread, 4),
            runs=outcome.runs,
            is_default=outcome.config == state.task.default,
            compared=compared,
            in_model=in_model,
            model=self._origin.model_key if in_model else "",
            device=outcome.device or self._origin.device,
            method=self.method,
            measure=self.measure,
            unix_time=int(time.time()),
            note=outcome.note,
        )

    def _model_seconds(self, *, default: bool) -> float:
        if not default:
            return seconds_of_model(self.states)
        own = [state for state in self.states if not state.task.instead_of]
        return sum(state.task.count * (state.default_seconds or 0.0) for state in own)

    def _report(self, phase: str, state: TaskState | None) -> None:
        progress = self.progress
        progress.phase, progress.current = phase, state
        progress.seconds = time.monotonic() - self._began
        now = self._model_seconds(default=False)
        if phase == "search" and (not progress.history or now < progress.history[-1][2]):
            progress.history.append((progress.seconds, progress.trials, now))
        progress.now = now
        self._notify(progress)


def _join_alternatives(states: Sequence[TaskState]) -> None:
    """Link the states of tasks that compute the same."""
    groups: dict[str, list[TaskState]] = {}
    for state in states:
        groups.setdefault(state.task.instead_of or state.task.key, []).append(state)
    for group in groups.values():
        for state in group:
            state.alternatives = group if len(group) > 1 else []


def _has_a_leader(state: TaskState) -> bool:
    """True if there is a measurement to compare with the default, or with the untuned alternative."""
    if state.best is None or (state.task.instead_of and state.best_seconds > _NEAR * state.fastest_seconds):
        return False
    return state.contested or state.best[0] != state.task.default


def subject_of(state: TaskState) -> Subject:
    """A task in the form used by cost models."""
    task = state.task
    return Subject(task.key, task.rule.name, task.workload, state.machine, task.default)


PATIENCE = 64
"""Trials without a gain after which a task is finished."""
_SMALL_SHARE = 0.0005  # fraction of the model's time
_HOPE = 0.25  # assumed gain of a new task after `_HOPE_TRIALS` trials
_HOPE_TRIALS = 32
_NEAR_BOUND = 1.05
_LOOK_BACK = 32
_HOPELESS = 1.25  # slowdown relative to an alternative for the same computation


def next_task(states: Sequence[TaskState]) -> TaskState | None:
    """The task to try next; None if all are finished."""
    total = seconds_of_model(states)
    for state in states:
        state.finished = state.finished or reason_to_stop(state, total)
    open_ones = [state for state in states if not state.finished]
    return max(open_ones, key=expected_gain, default=None)


def seconds_in_model(state: TaskState) -> float:
    """Seconds of the task per run of the model, in the fastest alternative and with the best config."""
    return state.task.count * state.fastest_seconds if math.isfinite(state.fastest_seconds) else 0.0


def seconds_of_model(states: Iterable[TaskState]) -> float:
    """Seconds of one run in kernels; of several alternatives for the same computation, one counts."""
    return sum(seconds_in_model(state) for state in states if not state.task.instead_of)


def reason_to_stop(state: TaskState, total: float) -> str:
    """Reason why a task gets no more trials; "" if it still does."""
    if state.best is None:
        return "it could not be measured"
    if state.best_seconds <= _NEAR_BOUND * state.lower_bound:
        return f"at {state.lower_bound / state.best_seconds:.0%} of the machine's limit"
    if state.best_seconds > _HOPELESS * state.fastest_seconds:
        return f"an alternative is {state.best_seconds / state.fastest_seconds:.1f} times as fast"
    if seconds_in_model(state) < _SMALL_SHARE * total:
        return "it takes a negligible share of the time"
    if state.since_improvement() >= PATIENCE:
        return f"nothing gained in {PATIENCE} trials"
    return ""


def expected_gain(state: TaskState) -> float:
    """Seconds per run of the model that one second of trials is expected to save."""
    behind = state.best_seconds - state.fastest_seconds
    hope = max(0.0, _HOPE * state.best_seconds - behind)
    ahead = hope / (_HOPE_TRIALS + 2 * state.since_improvement() + state.trials)
    if state.lower_bound:
        ahead *= max(0.0, 1 - state.lower_bound / state.best_seconds) ** 0.5
    cost = state.seconds / state.trials if state.trials and state.seconds else 1.0
    back = 0.5 * _recent_slope(state) if not behind else 0.0
    return state.task.count * max(ahead, back) / cost


def _recent_slope(state: TaskState) -> float:
    """Seconds saved per trial, over the last trials."""
    since = state.trials - _LOOK_BACK
    before = [seconds for trials, seconds in state.curve if trials <= since]
    first = before[-1] if before else (state.curve[0][1] if state.curve else state.best_seconds)
    return max(0.0, first - state.best_seconds) / max(1, min(state.trials, _LOOK_BACK))
