"""`python -m tests.coverage models`: real models compared with ONNX Runtime or torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from tests.coverage.models import print_table, run_models, select, write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `models` table."""
    parser.add_argument("--filter", help="run only models whose name matches this pattern")
    parser.add_argument("--json", type=Path, help="write every row to this file")


def main(options: argparse.Namespace) -> int:
    """Run the models, print the table; 0 when every one is equal to its reference."""
    results = run_models(select(options.filter))
    print_table(results, Console())
    if options.json:
        write_json(results, options.json)
    return int(any(result.status != "equal" for result in results))
