"""Progress on stderr: each step with its time, as a live line on a terminal and as plain lines elsewhere.

Live display of tuning: trials, rate, the best of each task, the remaining time, and the model's latency.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from compiler.cli.output import message_console, print_note
from compiler.reports.formatting import format_cost, format_seconds

if TYPE_CHECKING:
    from compiler.tuning.state import Progress


class Steps:
    """Called with the name of each step as it begins; `seconds` has their times afterwards.

    with Steps() as steps:
        compiler.compile(model, progress=steps)
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._console = message_console()
        self._began = time.perf_counter()
        self._current: str | None = None
        self._since = self._began
        self._live: Any = None

    def __enter__(self) -> Steps:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish(done=kind is None)

    def __call__(self, step: str) -> None:
        """Begin a step; a text with a colon is a note, not a step."""
        if ": " in step:
            print_note(step)
            return
        self._finish(done=True)
        self._current, self._since = step, time.perf_counter()
        if self._console.is_terminal:
            self._live = _live_line(self._console, step)
            self._live.start()
        else:
            self._console.print(f"[{self._since - self._began:6.2f} s] {step}", markup=False)

    def _finish(self, done: bool) -> None:
        if self._current is None:
            return
        elapsed = time.perf_counter() - self._since
        self.seconds[self._current] = self.seconds.get(self._current, 0.0) + elapsed
        if self._live is not None:
            self._live.stop()
            self._live = None
            if done:
                self._console.print(f"[green]done[/]  {self._current:<24} [dim]{format_seconds(elapsed)}[/]")
        self._current = None


def _live_line(console: Any, step: str) -> Any:
    """Show a line with a spinner and a timer while a step runs; it disappears when the step ends."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(step)
    return progress


_REFRESH_SECONDS = 0.25
_LINE_SECONDS = 10.0
_TASKS_SHOWN = 12


class TuningDisplay:
    """Called with the progress after each trial; a live table on a terminal, an occasional line elsewhere."""

    def __init__(self) -> None:
        self._console = message_console()
        self._live: Any = None
        self._shown = 0.0
        self._told = False

    def __enter__(self) -> TuningDisplay:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self._told:
            self._told = True
            self._tell_what_is_known(progress)
        if now - self._shown < (_REFRESH_SECONDS if self._live is not None else _LINE_SECONDS):
            return
        self._shown = now
        if self._live is not None:
            self._live.update(_table(progress), refresh=True)
        else:
            self._console.print(_line(progress), markup=False, soft_wrap=True)

    def _tell_what_is_known(self, progress: Progress) -> None:
        """Print the results of an earlier run from which this one continues."""
        if not progress.resumed:
            return
        known = sum(bool(state.results) for state in progress.states)
        self._console.print(f"continuing from {progress.resumed} recorded trials of {known} kernels", markup=False)


def _line(progress: Progress) -> str:
    parts = [
        f"[{progress.seconds:6.1f} s] {progress.phase}",
        f"{progress.trials} trials ({progress.rate:.1f}/s)",
        f"model {format_cost(progress.before, progress.unit)} -> {format_cost(progress.now, progress.unit)}",
    ]
    if progress.current is not None:
        parts.append(progress.current.task.names[0])
    if progress.remaining is not None:
        parts.append(f"{format_seconds(progress.remaining)} left")
    return ", ".join(parts)


def _table(progress: Progress) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", title=_line(progress), title_justify="left")
    table.add_column("task", overflow="ellipsis", no_wrap=True)
    for column in ("calls", "default", "best", "gain", "of limit", "trials"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    tunable = [state for state in progress.states if state.task.tunable and state.best is not None]
    ranked = sorted(tunable, key=lambda state: -state.task.count * (state.default_seconds or 0.0))
    for state in ranked[:_TASKS_SHOWN]:
        mark = "<" if state is progress.current else "done" if state.finished else ""
        default = state.default_seconds
        table.add_row(
            Text(state.task.names[0]),
            str(state.task.count),
            format_seconds(default) if default is not None else "",
            format_seconds(state.best_seconds),
            f"{state.gain:.2f}",
            f"{state.of_limit:.0%}" if state.of_limit is not None else "",
            str(state.trials),
            mark,
        )
    if len(ranked) > _TASKS_SHOWN:
        table.add_row(Text(f"... and {len(ranked) - _TASKS_SHOWN} smaller ones", style="dim"))
    return table
