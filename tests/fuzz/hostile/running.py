"""Runs the hostile suite in worker processes: reference runs, compilation, and our runs with guarded memory."""

from __future__ import annotations

import importlib
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tests.fuzz.hostile import references
from tests.fuzz.hostile.catalog import Subject, TorchSource
from tests.fuzz.hostile.documented import is_documented
from tests.fuzz.hostile.guarded_memory import GUARD_STATUS, LAYOUTS, Guard, build_library, preloaded
from tests.fuzz.hostile.verdict import Ours, Theirs, Verdict
from tests.fuzz.outcome import Outcome
from tests.fuzz.random_graphs import difference
from tests.fuzz.worker_pool import run_cases

Array = NDArray[Any]
Phase = Literal["reference", "compile", "run"]
CATALOG = "tests.fuzz.hostile.subjects"
_GUARD = "guard"
_SECONDS: dict[Phase, float] = {"reference": 60.0, "compile": 240.0, "run": 60.0}  # the first imports PyTorch
_REFERENCE_BYTES = 4 << 30
_GUARDED_BYTES = 1 << 43  # the arena of guarded memory is only address space
_RUNS_A_SUBJECT = 1000  # a seed is subject * this + run


@dataclass(frozen=True)
class Context:
    """Inputs of a worker.

    Attributes:
        catalog: the name of a module that has `subjects()`.
        folder: where workers leave compiled modules and results.
    """

    catalog: str
    folder: Path
    phase: Phase

    def subject(self, number: int) -> Subject:
        """The subject with a number, the same in every process."""
        return _subjects(self.catalog)[number]

    def module(self, subject: int) -> Path:
        return self.folder / f"{subject}.twm"

    def result(self, phase: Phase, seed: int) -> Path:
        return self.folder / f"{phase}-{seed}.pickle"

    def report(self, process: int) -> Path:
        """The file in which guarded memory reports the address that a process touched."""
        return self.folder / f"touched-{process}"

    def read(self, phase: Phase, seed: int) -> Any:
        """Results of a worker; None if it ended before."""
        path = self.result(phase, seed)
        return pickle.loads(path.read_bytes()) if path.exists() else None


def _subjects(catalog: str) -> tuple[Subject, ...]:
    found: tuple[Subject, ...] = importlib.import_module(catalog).subjects()
    return found


def run_subjects(
    chosen: Sequence[int],
    folder: Path,
    *,
    catalog: str = CATALOG,
    workers: int = 1,
    seen: Callable[[], None] | None = None,
) -> list[Verdict]:
    """Verdicts of all runs of the subjects with these numbers.

    Args:
        catalog: the name of a module that has `subjects()`.
        seen: called after each step of a worker; there are `steps(chosen)`.
    """
    every = _subjects(catalog)
    seeds = [index * _RUNS_A_SUBJECT + place for index in chosen for place in range(len(every[index].runs))]
    library = build_library(folder)
    died = {"reference": _work(Context(catalog, folder, "reference"), seeds, workers, seen)}
    with preloaded(library):
        died["compile"] = _work(Context(catalog, folder, "compile"), chosen, workers, seen)
        context = Context(catalog, folder, "run")
        compiled = {index for index in chosen if context.module(index).exists()}
        died["run"] = _work(context, [seed for seed in seeds if seed // _RUNS_A_SUBJECT in compiled], workers, seen)
    return [_verdict(context, seed, died) for seed in seeds]


def steps(chosen: Sequence[int]) -> int:
    """An upper bound on the workers' steps."""
    runs = sum(len(_subjects(CATALOG)[index].runs) for index in chosen)
    return 2 * runs + len(chosen)


def _work(context: Context, seeds: Iterable[int], workers: int, seen: Callable[[], None] | None) -> dict[int, Outcome]:
    """Run cases and return the outcomes of those that ended their process, and do so again in their own process.

    A heap corrupted by one case may end the process in a later one.
    """
    died = _worked(context, seeds, workers, seen)
    again = [seed for seed, outcome in died.items() if outcome.kind == "crash" and outcome.label != _GUARD]
    alone = {seed: outcome for each in again for seed, outcome in _worked(context, [each], 1, None).items()}
    return {seed: outcome for seed, outcome in died.items() if seed not in again or seed in alone}


def _worked(
    context: Context, seeds: Iterable[int], workers: int, seen: Callable[[], None] | None
) -> dict[int, Outcome]:
    memory = _REFERENCE_BYTES if context.phase == "reference" else _GUARDED_BYTES
    died = {}
    outcomes: Iterator[Outcome] = run_cases(
        case, context, list(seeds), workers=workers, seconds=_SECONDS[context.phase], memory_bytes=memory
    )
    for outcome in outcomes:
        if outcome.failed:
            died[outcome.seed] = _with_reports(outcome, context.folder)
        if seen is not None:
            seen()
    return died


def _with_reports(outcome: Outcome, folder: Path) -> Outcome:
    """The outcome with the report of guarded memory at the end of the process."""
    if outcome.detail != f"exit status {GUARD_STATUS}":
        return outcome
    said = []
    for path in folder.glob("touched-*"):
        said.append(path.read_text())
        path.unlink()
    return Outcome(outcome.kind, _GUARD, "; ".join(said), outcome.seed)


def case(context: Context, seed: int) -> Outcome:
    """One step of a worker, which writes its result to a file."""
    result: Any = {"reference": _reference, "compile": _compile, "run": _run}[context.phase](context, seed)
    try:
        stored = pickle.dumps(result)
    except MemoryError:
        stored = pickle.dumps((result[0], "too large to store"))
    context.result(context.phase, seed).write_bytes(stored)
    return Outcome("right", context.phase)


def _reference(context: Context, seed: int) -> tuple[Theirs, Any]:
    subject = context.subject(seed // _RUNS_A_SUBJECT)
    return references.computed(subject, seed // _RUNS_A_SUBJECT, subject.runs[seed % _RUNS_A_SUBJECT].feeds)


@cache
def _guard(report: Path) -> Guard:
    return Guard(report)


def _compile(context: Context, seed: int) -> tuple[Ours, str]:
    import compiler
    from compiler.errors import UserError

    subject = context.subject(seed)
    guard = _guard(context.report(os.getpid()))
    try:
        with guard.on(LAYOUTS[0]):
            module = compiler.compile(**_arguments(subject), threads=1, passes={"instead-of:plan-memory": None})
            module.export(context.module(seed))
    except UserError as error:
        return "refused when compiled", f"{type(error).__name__}: {error}"
    except Exception as error:
        return "exception", f"{type(error).__name__}: {error}"
    return "equal", ""


def _arguments(subject: Subject) -> dict[str, Any]:
    source = subject.source()
    good = {name: np.array(array) for name, array in subject.good.items()}
    if not isinstance(source, TorchSource):
        return {"source": source, "reference_inputs": good}
    return {
        "source": source.module,
        "example_inputs": source.example,
        "dynamic_shapes": source.dynamic_shapes,
        "reference_inputs": good,
    }


def _run(context: Context, seed: int) -> tuple[Ours, Any]:
    """Load the module and run it in each memory layout."""
    import compiler
    from compiler.errors import UserError

    subject = context.subject(seed // _RUNS_A_SUBJECT)
    feeds = subject.runs[seed % _RUNS_A_SUBJECT].feeds
    guard = _guard(context.report(os.getpid()))
    results: list[Any] = []
    for layout in LAYOUTS:
        with guard.on(layout) as written:
            try:
                outputs = compiler.load(context.module(seed // _RUNS_A_SUBJECT)).run(feeds)
                results.append([np.array(each) for each in outputs.values()])
                del outputs
            except UserError as error:
                results.append(f"{type(error).__name__}: {error}")
            except Exception as error:
                return "exception", f"{type(error).__name__}: {error}"
        if written[0]:
            return "written beside", f"{written[0]} buffer(s)"
    first, second = results
    if isinstance(first, str) or isinstance(second, str):
        same = isinstance(first, str) and isinstance(second, str)
        return ("refused", first) if same else ("nondeterministic", f"{first} and {second}"[:300])
    for one, other in zip(first, second, strict=True):
        if one.shape != other.shape or one.tobytes() != other.tobytes():
            return "nondeterministic", _summary(one, other)
    return "equal", first


def _summary(one: Array, other: Array) -> str:
    if one.shape != other.shape:
        return f"{one.shape} and {other.shape}"
    places = np.argwhere(one != other)
    where = tuple(places[0].tolist()) if len(places) else ()
    return f"at {where}: {one[where]} and {other[where]}"


def _verdict(context: Context, seed: int, died: dict[str, dict[int, Outcome]]) -> Verdict:
    index, place = divmod(seed, _RUNS_A_SUBJECT)
    subject = context.subject(index)
    run = subject.runs[place]
    theirs, expected = _theirs(context, seed, died)
    ours, value = _ours(context, seed, died)
    detail = value if isinstance(value, str) else ""
    documented = is_documented(subject, run.label)
    if ours == "equal" and theirs == "computes":
        wrong = references.differences(value, expected, difference)
        if wrong is not None:
            ours, detail = ("documented" if documented else "differs"), wrong
    elif ours == "equal":
        ours, detail = ("documented" if documented else "computed alone"), f"{_shapes(value)} | {expected}"
        if theirs == "has no such operator":
            ours = "equal"
    return Verdict(subject.frontend, subject.name, run.label, theirs, ours, detail)


def _theirs(context: Context, seed: int, died: dict[str, dict[int, Outcome]]) -> tuple[Theirs, Any]:
    if seed in died["reference"]:
        return "crashes", died["reference"][seed].detail
    result: tuple[Theirs, Any] = context.read("reference", seed)
    return result


def _ours(context: Context, seed: int, died: dict[str, dict[int, Outcome]]) -> tuple[Ours, Any]:
    index = seed // _RUNS_A_SUBJECT
    outcome = died["compile"].get(index) or died["run"].get(seed)
    if outcome is not None:
        if outcome.kind == "hang":
            return "hang", outcome.detail
        return ("guard hit" if outcome.label == _GUARD else "crash"), outcome.detail + (
            " (compiling)" if index in died["compile"] else ""
        )
    compiled: tuple[Ours, str] = context.read("compile", index)
    if compiled[0] != "equal":
        return compiled
    result: tuple[Ours, Any] = context.read("run", seed)
    return result


def _shapes(arrays: list[Array]) -> str:
    return ", ".join(f"{each.dtype}{list(each.shape)} {each.reshape(-1)[:4].tolist()}" for each in arrays)
