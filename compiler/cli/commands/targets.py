"""`tensorwright targets`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from compiler.cli import options
from compiler.cli.options import argument, flag, option
from compiler.cli.output import print_json, print_line, print_note, print_table

if TYPE_CHECKING:
    from compiler.inspection.listings import TargetEntry

HELP = """List the targets, or check one.

[bold]Typical[/]

  tensorwright targets

The name is the value of --target in other commands; host is this machine's processor. A number of cores can follow it:
granite-rapids:32. Without it, server presets use the core count of this machine.

[bold]Examples[/]

  Run the conformance suite, which every target passes:
    tensorwright targets check raspberry-pi-5
"""
CHECK_HELP = """Run the conformance suite on a target, yours or ours, and report what fails.

[bold]Typical[/]

  tensorwright targets check my-accelerator
"""


def register(app: typer.Typer) -> None:
    """Add the command and its subcommands."""
    group = typer.Typer(help=HELP, invoke_without_command=True, rich_markup_mode="rich")
    group.callback(invoke_without_command=True)(_targets)
    group.command("check", help=CHECK_HELP)(_check)
    app.add_typer(group, name="targets")


def _targets(
    context: typer.Context,
    details: bool = flag("Also show processor features, toolchains and results of the conformance suite.", "--details"),
    as_json: bool = options.JSON,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from compiler.inspection.listings import list_targets

    listed, problems = list_targets()
    for problem in problems:
        print_note(problem)
    if as_json:
        print_json([entry.to_dict() for entry in listed])
        return
    if not details:
        columns = ("target", "cores", "runs here", "what it is")
        print_table(columns, [(entry.name, _cores(entry), _runs(entry), _short(entry.description)) for entry in listed])
        print_line()
        print_line("More: tensorwright targets --details, or --json. Conformance: tensorwright targets check NAME.")
        return
    rows = [
        (
            entry.name,
            _machine(entry),
            _cores(entry),
            entry.runs,
            entry.conformance or "not checked here",
            entry.toolchain or f"missing: {entry.install}",
            entry.description,
        )
        for entry in listed
    ]
    print_table(("target", "machine", "cores", "how it runs here", "conformance", "built by", "what it is"), rows)
    print_line()
    print_line("--json lists every processor feature. Conformance: tensorwright targets check NAME.")


def _runs(entry: TargetEntry) -> str:
    """Describe in a word or two how modules run on this machine."""
    if entry.toolchain is None:
        return "no toolchain"
    how = entry.runs.partition(":")[0]
    return "emulated" if how.startswith("under ") else how


def _short(description: str) -> str:
    """Return the first part of a description."""
    return description.partition("; here ")[0].partition(", beside ")[0]


def _machine(entry: TargetEntry) -> str:
    processor = ", ".join([entry.architecture, f"{entry.vector_bits} bit", *entry.notable])
    return f"{entry.device}; {processor}" if entry.device else processor


def _cores(entry: TargetEntry) -> str:
    return f"{entry.cores} of up to {most}" if (most := entry.most_cores or 0) > entry.cores else str(entry.cores)


def _check(
    name: str = argument("A target's name.", "NAME"),
    only: str | None = option("Run only the check with this name, or checks whose names contain it.", "TEXT"),
    as_json: bool = options.JSON,
) -> None:
    from compiler.driver.conformance import check_target, keep_outcomes

    outcomes = []
    for outcome in check_target(name, only):
        outcomes.append(outcome)
        if not as_json:
            mark = "passed" if outcome.problem is None else "FAILED"
            print_line(f"{mark}  {outcome.check:<36} {outcome.seconds:6.1f} s  {outcome.problem or ''}".rstrip())
    if only is None:
        keep_outcomes(name, outcomes)
    failed = sum(outcome.problem is not None for outcome in outcomes)
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        print_line(f"{len(outcomes) - failed} of {len(outcomes)} checks passed")
    if failed or not outcomes:
        raise typer.Exit(1)
