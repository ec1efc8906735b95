"""`python -m tests.coverage onnx`: the table of the onnx package's node tests."""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.coverage.node_tests import Outcome, is_plain, load_cases, run_all, tested_operator


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `onnx` table."""
    parser.add_argument("--filter", default="", help="run only tests whose name matches this regular expression")
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default: 2)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a test may take (default: 120)")
    parser.add_argument("--markdown", type=Path, help="write the page docs/onnx.md to this file")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--engine-only", action="store_true", help="build with TVM's pipeline, without ours")
    parser.add_argument("--plain", action="store_true", help="run only tests whose inputs and outputs numpy can hold")
    parser.add_argument("--details", action="store_true", help="print the reason of every test that does not pass")


def main(options: argparse.Namespace) -> int:
    """Run the tests and print the table; return 0 if none is wrong or crashes."""
    console = Console()
    outcomes = run(options, console)
    print_table(outcomes, console)
    if options.details:
        for outcome in outcomes:
            if outcome.status != "pass":
                console.print(f"{outcome.status} {outcome.name}: {outcome.reason[:600]}", markup=False, highlight=False)
    if options.markdown:
        options.markdown.write_text(coverage_as_markdown(outcomes))
    return int(any(o.status in ("wrong", "crash") for o in outcomes if o.plain))


def run(options: argparse.Namespace, console: Console) -> list[Outcome]:
    """Outcomes of the selected tests, sorted by name."""
    cases = {name: case for name, case in load_cases().items() if re.search(options.filter, name)}
    plain = {name: is_plain(case) for name, case in cases.items()}
    names = [name for name in cases if plain[name] or not options.plain]
    outcomes = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("onnx node tests", total=len(names))
        for name, status, reason, seconds in run_all(names, options.jobs, options.timeout, options.engine_only):
            operator = tested_operator(cases[name])
            outcomes.append(Outcome(name, operator, status, reason, plain[name], round(seconds, 3)))
            progress.advance(task)
            if options.json:
                # Written one by one, so that an interrupted sweep keeps its results.
                options.json.write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1))
    return sorted(outcomes, key=lambda outcome: outcome.name)


def print_table(outcomes: list[Outcome], console: Console) -> None:
    """Print counts per operator (only those with failing tests), and the totals."""
    by_operator: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in outcomes:
        by_operator[outcome.operator][outcome.status] += 1
    statuses = ("pass", "refused", "wrong", "crash")
    table = Table("operator", *statuses, title="Operators with tests that do not pass")
    for operator, counts in sorted(by_operator.items()):
        if set(counts) != {"pass"}:
            table.add_row(operator, *(str(counts[s] or "") for s in statuses))
    console.print(table)
    for title, chosen in (
        ("inputs and outputs that numpy can hold", [o for o in outcomes if o.plain]),
        ("others (sequences, optionals, strings, 4-bit, bfloat16, float8)", [o for o in outcomes if not o.plain]),
    ):
        counts = Counter(outcome.status for outcome in chosen)
        console.print(f"{title}: {len(chosen)} tests: " + ", ".join(f"{counts[s]} {s}" for s in statuses))
    for outcome in outcomes:
        if outcome.status in ("wrong", "crash"):
            console.print(f"{outcome.name}: {outcome.status}: {outcome.reason[:300]}", markup=False)


def coverage_as_markdown(outcomes: list[Outcome]) -> str:
    """The page `docs/onnx.md`: the number of passing tests, and the refused ones, grouped by reason."""
    counts = Counter(outcome.status for outcome in outcomes if outcome.plain)
    reasons: dict[str, list[str]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.status == "refused":
            reasons[outcome.reason.replace("|", "/")].append(f"`{outcome.name.removeprefix('test_')}`")
    lines = [
        "# ONNX operator coverage",
        "",
        "The `onnx` package has node tests: one small model per operator and variant, with inputs and expected "
        f"outputs. {sum(counts.values())} of them use only tensors of types that NumPy has. Of these:",
        "",
        "| result | tests |",
        "|---|---|",
        f"| outputs match | {counts['pass']} |",
        f"| refused with an error that names the operator and the reason | {counts['refused']} |",
        f"| wrong output or crash | {counts['wrong'] + counts['crash']} |",
        "",
        "Checks at run time, and the results for indices and sizes that are out of range: "
        "[run-time checks](runtime_checks.md).",
        "",
        "## Refused tests",
        "",
        "All refused tests, including those with sequences, optionals and strings, without the prefix `test_`.",
        "",
        "| reason | tests |",
        "|---|---|",
    ]
    by_size = sorted(reasons.items(), key=lambda item: (-len(item[1]), item[0]))
    lines += [f"| {reason} | {', '.join(names)} |" for reason, names in by_size]
    lines += ["", "This page is generated by `python -m tests.coverage onnx --markdown docs/onnx.md`."]
    return "\n".join(lines) + "\n"
