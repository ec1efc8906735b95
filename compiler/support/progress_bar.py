"""The default progress display of functions: a bar in a terminal or notebook, nothing elsewhere.

`progress=None` disables it, and a function given as `progress` replaces it.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_active = threading.local()


def automatic(step: object) -> None:
    """The default of `progress=`: a bar in a terminal or notebook, otherwise nothing. Calling it does nothing."""


def silent(step: object) -> None:
    """Replaces `progress=None`: does nothing."""


def is_silent(progress: object) -> bool:
    """True if no progress is shown, so that notes for the user must be warnings."""
    return progress is None or progress is automatic


def shows_progress(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorate a function with a keyword `progress`: a bar replaces the default if one can be shown."""

    @functools.wraps(function)
    def shown(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        if kwargs.get("progress", automatic) is not automatic or getattr(_active, "shown", False):
            return function(*args, **kwargs)
        bar = _bar(function.__name__)
        if bar is None:
            return function(*args, **kwargs)
        _active.shown = True
        try:
            with bar:
                kwargs["progress"] = bar
                return function(*args, **kwargs)
        finally:
            _active.shown = False

    return shown


def _bar(title: str) -> _TerminalBar | _NotebookLine | None:
    if _in_notebook():
        return _NotebookLine(title)
    return _TerminalBar(title) if sys.stderr is not None and sys.stderr.isatty() else None


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def step_text(step: Any) -> str:
    """A step as one line: a text, or the state of a tuning run (`compiler.tuning.session.Progress`)."""
    if isinstance(step, str):
        return step
    current = f", {step.current.task.kernel}" if getattr(step, "current", None) is not None else ""
    return f"{step.phase}: {step.trials} trials in {step.seconds:.0f} s{current}"


class _TerminalBar:
    """A bar on stderr that disappears at the end; notes (steps with a colon) stay above it."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._title = title
        console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(title, total=None)

    def __enter__(self) -> _TerminalBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, step: object) -> None:
        if isinstance(step, str) and ": " in step:
            self._progress.console.print(step, markup=False)
            return
        self._progress.update(self._task, description=f"{self._title}: {step_text(step)}")


class _NotebookLine:
    """A line below the cell that is updated at each step; at the end it shows the total time."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._since = time.perf_counter()
        self._handle: Any = None
        self._notes: list[str] = []

    def __enter__(self) -> _NotebookLine:
        from IPython.display import display

        self._handle = display(self._html("..."), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show("done" if kind is None else "failed")

    def __call__(self, step: object) -> None:
        if isinstance(step, str) and ": " in step:
            self._notes.append(step)
        self._show(step_text(step))

    def _show(self, text: str) -> None:
        if self._handle is not None:
            self._handle.update(self._html(text))

    def _html(self, text: str) -> Any:
        from html import escape

        from IPython.display import HTML

        notes = "".join(f"<div>{escape(note)}</div>" for note in self._notes)
        seconds = time.perf_counter() - self._since
        bar = "" if text in ("done", "failed") else "<progress></progress> "
        return HTML(f"{notes}<div>{bar}{escape(self._title)}: {escape(text)} ({seconds:.1f} s)</div>")
