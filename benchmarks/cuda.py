"""Kernels for NVIDIA GPUs: compilation results of each model and, on a machine with a device, correctness and times.

    python -m benchmarks.cuda                         # every model of the catalog, for sm_75
    python -m benchmarks.cuda resnet18 --target a100 --precision bf16
    python -m benchmarks.cuda resnet18 --int8 --kernels      # quantized; also a line for each launch
    python -m benchmarks.cuda --no-nvcc               # fast: checks that every kernel is bound, without machine code
    python -m benchmarks.cuda --device --target h100  # on a machine with a GPU: conformance, correctness, times
    python -m benchmarks.cuda --pack DIR --target h100 --limit 60MB   # a folder for a machine that has only a driver
    python -m benchmarks.cuda --report results.json   # tables of the results of DIR/run

Without --device nothing is run or timed: kernels are compiled, and registers, spills and matrix instructions counted.
With it, the conformance suite runs on the device, outputs are compared with the CPU's, and runs are timed alternately
with torch.compile and ONNX Runtime (for all including copies to and from the device). It fails if a check or a result
is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import targets
from benchmarks import _cuda_device, _cuda_pack
from benchmarks._cuda_kernels import Examined, Launch, examine, source_arguments
from benchmarks._models import task_of
from benchmarks._quantized import quantized
from benchmarks.catalog import CATALOG
from compiler.driver.compile import check_precision
from compiler.errors import TensorwrightError
from compiler.support.precision import PRECISIONS
from targets.cuda.target import CudaTarget

_HEADER = (
    "| model | kernels | launches | on tensor cores | tiled in float32 | one thread | most registers | spilled bytes "
    "| seconds |"
)


def line(name: str, found: Examined) -> str:
    """A row of the table."""
    resources = [each.resources for each in found.launches if each.resources is not None]
    registers = max(each.registers for each in resources) if resources else "-"
    spilled = sum(each.spill_stores for each in resources) if resources else "-"
    plain = sum(each.tile == "float" for each in found.launches)
    return (
        f"| {name} | {found.kernels} | {len(found.launches)} | {found.on_tensor_cores} | {plain} "
        f"| {len(found.on_one_thread)} | {registers} | {spilled} | {found.seconds:.0f} |"
    )


def launch_line(launch: Launch) -> str:
    """A launch as a line of text."""
    words = [f"  {launch.name}: {launch.rule}", f"{launch.threads} threads"]
    if (resources := launch.resources) is not None:
        words += [f"{resources.registers} registers", f"{resources.shared} bytes shared"]
        words += [f"{resources.spill_stores} bytes spilled"] if resources.spill_stores else []
        words += [f"{resources.stack} bytes of stack"] if resources.stack else []
    words += [f"tiles of {launch.tile}"] if launch.tile else []
    words += [f"{launch.matrix_instructions} matrix instructions"] if launch.matrix_instructions else []
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.report:
        return _cuda_pack.report(options.report)
    if options.pack:
        return _cuda_pack.pack(
            options.pack, options.target or "h100", options.limit, options.models, 1e9 * options.simulate
        )
    names = options.models or list(CATALOG)
    if unknown := [name for name in names if name not in CATALOG]:
        print(f"no model of the catalog: {', '.join(unknown)}", file=sys.stderr)
        return 2
    target = targets.get(options.target or "t4")
    if not isinstance(target, CudaTarget):
        print(f"{target.name} is not a CUDA target", file=sys.stderr)
        return 2
    if options.device:
        return _on_device(names, target, options)
    return _examined(names, target, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="*", help="names of the catalog, or parts of a pack's entries; all unless given"
    )
    parser.add_argument("--target", help="a CUDA target; t4, or h100 for a pack, unless given")
    parser.add_argument("--no-nvcc", action="store_true", help="stop at CUDA source")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of products and convolutions")
    parser.add_argument("--int8", action="store_true", help="the models quantized by ONNX Runtime")
    parser.add_argument("--kernels", action="store_true", help="a line for each launch")
    parser.add_argument("--device", action="store_true", help="run, compare and time on this machine's device")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="write a folder for a machine that has only a driver")
    parser.add_argument("--limit", default="60MB", help="of a pack's files together")
    parser.add_argument(
        "--simulate", type=float, default=10, help="giga operations of a pack's nets that are simulated"
    )
    parser.add_argument("--report", type=Path, nargs="+", metavar="JSON", help="print the tables of a pack's results")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=0.6, help="length of a turn")
    return parser


def _examined(names: Sequence[str], target: CudaTarget, options: Any) -> int:
    failed = False
    print(_HEADER + "\n|" + "---|" * (_HEADER.count("|") - 1))
    for name in names:
        try:
            check_precision(target, options.precision)
            source, keywords = _quantized(name) if options.int8 else source_arguments(CATALOG[name])
            keywords |= {"precision": options.precision, "machine_code": not options.no_nvcc}
            examined = examine(source, target, **keywords)
        except TensorwrightError as error:
            failed = True
            print(f"| {name} | failed: {error.message[:300]} |", flush=True)
            continue
        print(line(name, examined), flush=True)
        if options.kernels:
            print("\n".join(map(launch_line, examined.launches)), flush=True)
    return int(failed)


def _quantized(name: str) -> tuple[Any, dict[str, Any]]:
    """A quantized model of the catalog, and arguments of `compile` for it."""
    task = quantized(task_of(name, CATALOG[name].sizes[0] or None))
    return task.path, {"shapes": task.shapes}


def _on_device(names: Sequence[str], target: CudaTarget, options: Any) -> int:
    try:
        _cuda_device.require_device(target)
    except TensorwrightError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 2
    failed = bool(_cuda_device.failed_checks(target, print))
    print(f"\n| {' | '.join(_cuda_device.HEADER)} |\n|" + "---|" * len(_cuda_device.HEADER))
    for name in names:
        try:
            row = _cuda_device.measure(name, target, rounds=options.rounds, seconds=options.seconds, report=print)
        except TensorwrightError as error:
            failed = True
            print(f"| {name} | failed: {error.message[:300]} |", flush=True)
            continue
        failed = failed or not row.is_right
        print(f"| {' | '.join(row.cells())} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
