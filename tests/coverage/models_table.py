"""`python -m tests.coverage models`: real models compared with ONNX Runtime or torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from tests.coverage.models import LEFT_OUT, print_table, run_models, select, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `models` table."""
    parser.add_argument("--filter", help="run only models whose name matches this pattern")
    parser.add_argument("--target", default="host", help="compile for this target, and run under its emulator")
    parser.add_argument("--largest", type=float, default=1e9, metavar="MB", help="leave out models that are larger")
    parser.add_argument("--json", type=Path, help="write every row to this file")


def main(options: argparse.Namespace) -> int:
    """Run the models and print the table; return 0 if each equals its reference."""
    results = run_models(select(options.filter), options.target, str(options.largest))
    print_table(results, Console())
    if options.json:
        write_json(results, options.json)
    return int(any(result.status not in ("equal", LEFT_OUT) for result in results))
