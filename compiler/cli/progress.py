"""Progress on stderr: each step as it begins, with times; a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from compiler.cli.output import message_console, print_note
from compiler.reports.formatting import format_seconds


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
    """A line with a spinner and a timer while a step runs; it vanishes when the step ends."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(step)
    return progress
