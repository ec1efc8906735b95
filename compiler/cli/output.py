"""Output of commands: results on stdout, everything else on stderr; tables for people, JSON for machines.

Exit codes of the command line.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compiler.errors import InternalError, UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PIPED_WIDTH = 10_000


def _console(to_stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    # A pipe has no width: without this, lines would be cut to 80 columns.
    width = None if stream.isatty() else max(_PIPED_WIDTH, shutil.get_terminal_size().columns)
    # https://no-color.org: rich would still send bold and dim.
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(file=stream, highlight=False, width=width, emoji=False, color_system=colors)


@cache
def result_console() -> Console:
    """The console for results."""
    return _console(to_stderr=False)


@cache
def message_console() -> Console:
    """The console for progress, notes and errors."""
    return _console(to_stderr=True)


def write_out(text: str) -> None:
    """Write text on stdout at once, without the end of a line."""
    sys.stdout.write(text)
    sys.stdout.flush()


def print_error(message: str, hint: str | None) -> None:
    """`error: ...` and `hint: ...` on stderr, as plain text but for the colour of the first word."""
    _print_labelled("error", "bold red", message)
    if hint:
        _print_labelled("hint", "bold cyan", hint)


def print_note(message: str) -> None:
    """`note: ...` on stderr."""
    _print_labelled("note", "bold", message)


def _print_labelled(label: str, style: str, message: str) -> None:
    from rich.text import Text

    line = Text.assemble((f"{label}:", style), " ", message)
    message_console().print(line, soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON document on stdout; numbers that JSON does not have (NaN, infinities) become null."""
    print(json.dumps(_jsonable(value), indent=2, allow_nan=False))


def _jsonable(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_jsonable(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return _jsonable(value.item())
    return value


def print_line(text: str = "") -> None:
    """Print a line of results, without markup."""
    result_console().print(text, markup=False, soft_wrap=True)


def print_heading(text: str) -> None:
    """Print a heading above a table or a list."""
    from rich.text import Text

    result_console().print(Text(text, style="bold"))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Two columns: names and values."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(Text(label), Text(value))
    _print_cells(grid)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """A table; the columns named in `numbers` are aligned right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        is_number = column in numbers
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _print_cells(table)


def _print_cells(table: Table) -> None:
    """Print a table; in a pipe without the spaces that fill its last column."""
    console = result_console()
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print_line(line.rstrip())


EXIT_USER_ERROR = UserError.exit_code
EXIT_INTERNAL_ERROR = InternalError.exit_code
EXIT_INTERRUPTED = 130
