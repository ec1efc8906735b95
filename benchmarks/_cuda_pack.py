"""The options `--pack` and `--report` of `benchmarks.cuda`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import targets
from benchmarks.gpu_pack.report import read_results, tables
from compiler.errors import TensorwrightError
from targets.cuda.target import CudaTarget


def pack(folder: Path, name: str, limit: str, only: Sequence[str], max_operations: float) -> int:
    """Write a pack for a target with the entries whose names contain one of `only`, or all. Returns the exit status."""
    from benchmarks.gpu_pack.entries import entries
    from benchmarks.gpu_pack.pack import Made, make_pack, parse_size

    target = targets.get(name)
    if not isinstance(target, CudaTarget):
        print(f"{name} is not a CUDA target", file=sys.stderr)
        return 2
    chosen = [each for each in entries() if not only or any(part in each.name for part in only)]
    fitted: list[Made] = []

    def tell(made: Made) -> None:
        if made.written is None:
            print(f"{made.name}: not in the pack: {made.problem}", flush=True)
            return
        fitted.append(made)
        stored = f", {sum(made.written.stored.values())} bytes of stored parameters" if made.written.stored else ""
        calls = f", {made.written.calls} calls recorded" if made.written.calls else ""
        print(f"{made.name}: {made.written.bytes} bytes, {made.seconds:.0f} s{calls}{stored}", flush=True)

    try:
        failed = make_pack(folder, target, chosen, parse_size(limit), tell, max_operations)
    except TensorwrightError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {len(fitted)} of {len(chosen)} entries, {size / 1e6:.1f} MB; run {folder}/run there")
    return int(bool(failed))


def report(paths: Sequence[Path]) -> int:
    """Print the tables of results. Returns the exit status."""
    try:
        print(tables(read_results(paths)))
    except TensorwrightError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return 2
    return 0
