"""`tensorwright targets`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from compiler.cli import options

HELP = """List what modules can be built for.

[bold]Typical[/]

  tensorwright targets

A name goes to --target of the other commands; host is this machine's processor.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("targets", help=HELP)(_targets)


def _targets(as_json: options.Json = False) -> None:
    from compiler.cli.output import print_json, print_line, print_table
    from compiler.profiling.listings import list_targets

    listed = list_targets()
    if as_json:
        print_json([each.to_dict() for each in listed])
        return
    rows = [
        (
            each.name,
            each.architecture,
            f"{each.vector_bits} bit",
            ", ".join(each.notable) or "-",
            "yes"
            if not each.missing
            else "no: lacks " + ", ".join(each.missing[:3]) + (" ..." if each.missing[3:] else ""),
            each.toolchain or "missing",
            each.description,
        )
        for each in listed
    ]
    print_table(("target", "architecture", "vectors", "notable", "runs here", "linker", "what it is"), rows)
    print_line()
    print_line("--json lists every processor feature.")


def _fits(missing: Sequence[str]) -> str:
    if not missing:
        return "yes"
    return f"no, lacks {', '.join(missing[:3])}" + (", ..." if len(missing) > 3 else "")
