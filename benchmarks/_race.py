"""Alternating timings of a `Task`: each contestant in its own process (`compiler.profiling.peers`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from benchmarks._models import Task
from compiler.errors import InternalError
from compiler.profiling import peers
from compiler.profiling.peers import Entry, Result

__all__ = ["Entry", "Result", "race"]


def race(
    task: Task,
    entries: Sequence[Entry],
    threads: int,
    rounds: int,
    seconds: float,
    *,
    report: Callable[[str], None] | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[Result]:
    """Time these entries, including contestants defined only in benchmarks, on the examples of a task.

    Raises RuntimeError if a contestant fails.
    """
    examples = (task.arrays, *task.further_arrays)
    own = [replace(each, worker="benchmarks._contestant") for each in entries]
    try:
        return peers.race(task.name, examples, own, threads, rounds, seconds, report=report, settings=settings)
    except InternalError as error:
        raise RuntimeError(error.message) from error
