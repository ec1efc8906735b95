"""`tensorwright cache`."""

from __future__ import annotations

from dataclasses import asdict

import typer

from compiler.cli import options
from compiler.cli.output import print_json, print_line, print_table
from compiler.reports.formatting import format_bytes

HELP = """List or remove cached compiled modules.

Compiling the same model with the same options, target and versions returns the cached module. TENSORWRIGHT_CACHE_MB
limits the size of the cache (2048; 0 disables it), TENSORWRIGHT_CACHE sets its folder.

[bold]Typical[/]

  tensorwright cache list

[bold]Examples[/]

  Remove all:
    tensorwright cache clear
"""


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(help=HELP, rich_markup_mode="rich", no_args_is_help=True)
    group.command("list", help="List the modules, most recently used first.")(_list)
    group.command("clear", help="Remove all modules.")(_clear)
    app.add_typer(group, name="cache")


def _list(as_json: bool = options.JSON) -> None:
    from datetime import datetime

    from compiler.driver.module_cache import entries, limit_bytes
    from compiler.support.cache import cache_folder

    cached = entries()
    if as_json:
        print_json([asdict(entry) for entry in cached])
        return
    rows = [
        (entry.model, entry.target, format_bytes(entry.nbytes), f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}")
        for entry in cached
    ]
    print_table(("model", "target", "size", "last used"), rows, ("size",))
    total = format_bytes(sum(entry.nbytes for entry in cached))
    print_line(f"{total} of at most {format_bytes(limit_bytes())} in {cache_folder()}")


def _clear(as_json: bool = options.JSON) -> None:
    from compiler.driver.module_cache import clear

    freed = clear()
    if as_json:
        print_json({"freed": freed})
    else:
        print_line(f"removed {format_bytes(freed)}")
