"""`python -m tests.coverage packages timm`: small networks of Python packages, compared with PyTorch."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tests.coverage.package_models import PACKAGES
from tests.coverage.package_sweep import FAILURES, INTERNAL, SweepRow, check_network, summary, write_rows
from tests.fuzz.forked import call_forked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `packages` table."""
    parser.add_argument("package", choices=PACKAGES, help="the package, which has to be installed")
    parser.add_argument("--filter", help="run only networks whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="run only each Nth network")
    parser.add_argument("--json", type=Path, help="write every row to this file")


def main(options: argparse.Namespace) -> int:
    """Run the networks, each in a process of its own, and print a line for each; 0 without wrong or internal ones."""
    import torch

    import compiler.driver.compile  # noqa: F401  (once, not in each child)

    torch.set_num_threads(1)
    chosen = [each for each in PACKAGES[options.package]() if options.filter is None or options.filter in each.name]
    rows = []
    for model in chosen[:: options.every]:
        row = call_forked(partial(check_network, model)) or SweepRow(model.name, INTERNAL, detail="it died")
        rows.append(row)
        dynamic = f"{row.dynamic_result} {list(row.dynamic)}" if row.dynamic_result else ""
        print(
            f"{row.name:50} {row.fixed:24} {dynamic:34} {row.error:.1e} {row.seconds:6.1f} s  {row.detail}", flush=True
        )
    print(summary(rows))
    if options.json:
        write_rows(rows, options.json)
    return int(any(row.fixed in FAILURES or row.dynamic_result in FAILURES for row in rows))
