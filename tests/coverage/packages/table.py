"""`python -m tests.coverage packages timm`: small networks of Python packages, compared with PyTorch."""

from __future__ import annotations

import argparse
import resource
from functools import partial
from pathlib import Path

from tests.coverage.packages import PACKAGES
from tests.coverage.packages.model import PackageModel
from tests.coverage.packages.sweep import FAILURES, INTERNAL, SweepRow, check_network, summary, write_rows
from tests.fuzz.forked import call_forked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `packages` table."""
    parser.add_argument("package", choices=PACKAGES, help="the package, which has to be installed")
    parser.add_argument("--filter", help="run only networks whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="run only each Nth network")
    parser.add_argument("--start", type=int, default=0, help="leave out the networks before this one")
    parser.add_argument("--seconds", type=int, default=600, help="processor time that a network may take")
    parser.add_argument("--json", type=Path, help="write every row to this file")


def _bounded(model: PackageModel, seconds: int) -> SweepRow:
    """The row of a network, in a process that ends when its processor time is used up."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    return check_network(model)


def main(options: argparse.Namespace) -> int:
    """Run the networks, each in a process of its own, and print a line for each; 0 without wrong or internal ones."""
    import torch

    import compiler.driver.compile  # noqa: F401  (once, not in each child)

    torch.set_num_threads(1)
    chosen = [each for each in PACKAGES[options.package]() if options.filter is None or options.filter in each.name]
    rows = []
    for model in chosen[options.start :: options.every]:
        row = call_forked(partial(_bounded, model, options.seconds)) or SweepRow(
            model.name, INTERNAL, detail=f"it died, or took more than {options.seconds} s"
        )
        rows.append(row)
        dynamic = f"{row.dynamic_result} {list(row.dynamic)}" if row.dynamic_result else ""
        numbers = f"{row.error:.1e} {row.seconds:6.1f} s"
        print(f"{row.name:50} {row.fixed:24} {dynamic:34} {numbers}  {' '.join(row.detail.split())}", flush=True)
    print(summary(rows))
    if options.json:
        write_rows(rows, options.json)
    return int(any(row.fixed in FAILURES or row.dynamic_result in FAILURES for row in rows))
