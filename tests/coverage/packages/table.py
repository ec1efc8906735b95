"""`python -m tests.coverage packages timm`: small networks of Python packages, compared with PyTorch."""

from __future__ import annotations

import argparse
import json
import resource
import signal
from functools import partial
from pathlib import Path

from tests.coverage.packages import PACKAGES
from tests.coverage.packages.model import PackageModel
from tests.coverage.packages.sweep import (
    FAILURES,
    INTERNAL,
    UNFINISHED,
    SweepRow,
    check_network,
    summary,
    where_stopped,
    write_rows,
)
from tests.fuzz.forked import call_forked

_MEMORY_BYTES = 12 << 30  # limit of a network's address space
_LAST_SECONDS = 30  # to report where a network was when its time ran out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `packages` table."""
    parser.add_argument("package", choices=PACKAGES, help="the package, which has to be installed")
    parser.add_argument("--filter", help="run only networks whose name contains this")
    parser.add_argument("--every", type=int, default=1, help="run only each Nth network")
    parser.add_argument("--start", type=int, default=0, help="leave out the networks before this one")
    parser.add_argument("--seconds", type=int, default=600, help="processor time that a network may take")
    parser.add_argument("--dynamic-first", action="store_true", help="fixed sizes only where no dimension is dynamic")
    parser.add_argument("--json", type=Path, help="write every row to this file, and leave out networks that it holds")


def _bounded(model: PackageModel, seconds: int, dynamic_first: bool) -> SweepRow:
    """Compute the row of a network in a process with limited CPU time."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + _LAST_SECONDS))
    signal.signal(signal.SIGXCPU, signal.default_int_handler)
    try:
        return check_network(model, dynamic_first=dynamic_first)
    except KeyboardInterrupt as stopped:
        return SweepRow(model.name, UNFINISHED, seconds=seconds, detail=where_stopped(stopped))


def main(options: argparse.Namespace) -> int:
    """Run each network in its own process and print its line; return 0 if none is wrong or an internal error."""
    import torch

    torch.set_num_threads(1)
    _warm_up()
    rows = _known_rows(options.json)
    known = {row.name for row in rows}
    chosen = [each for each in PACKAGES[options.package]() if options.filter is None or options.filter in each.name]
    for model in chosen[options.start :: options.every]:
        if model.name in known:
            continue
        row = call_forked(partial(_bounded, model, options.seconds, options.dynamic_first)) or SweepRow(
            model.name, INTERNAL, detail=f"it died, of memory or of {options.seconds} s in one call"
        )
        rows.append(row)
        _print(row)
        if options.json:
            write_rows(rows, options.json)
    print(summary(rows))
    return int(any(row.fixed in FAILURES or row.dynamic_result in FAILURES for row in rows))


def _warm_up() -> None:
    """Load and build what the first import of a model needs: child processes inherit it."""
    import torch

    import compiler.driver.build  # noqa: F401
    from compiler.frontends.torch.exported_program import import_torch

    import_torch(torch.nn.Linear(2, 2).eval(), example_inputs=(torch.zeros(1, 2),))


def _known_rows(path: Path | None) -> list[SweepRow]:
    """The rows of an earlier run to continue."""
    return [SweepRow(**each) for each in json.loads(path.read_text())] if path is not None and path.exists() else []


def _print(row: SweepRow) -> None:
    dynamic = f"{row.dynamic_result} {list(row.dynamic)}" if row.dynamic_result else ""
    numbers = f"{row.error:.1e} {row.seconds:6.1f} s"
    print(f"{row.name:50} {row.fixed:24} {dynamic:34} {numbers}  {' '.join(row.detail.split())}", flush=True)
