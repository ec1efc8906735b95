"""`python -m tests.coverage files PATH...`: any ONNX files, compiled with dynamic sizes, against ONNX Runtime.

Each file has its own process. It is run at three sets of sizes on random inputs; sizes that ONNX Runtime itself
refuses (an image too small for the net) are left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

Array = NDArray[Any]

SEEDS = (0, 1, 2)
LOST_SIZES = "lost sizes"
TOLERANCE = 1e-4  # relative to the largest magnitude of each output
_BATCH = (1, 2, 1)
_IMAGE = ((64, 96), (96, 64), (160, 320))
_SIGNAL = (16000, 8000, 12345)
_SEQUENCE = (100, 77, 33)


@dataclass
class FileResult:
    """One row: equal, different, refused, failed, lost sizes (a dimension that the file leaves open is a number in the
    module), or skipped (ONNX Runtime runs it at none of the sizes)."""

    path: str
    status: str
    runs: int = 0
    error: float = 0.0
    detail: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the `files` table."""
    parser.add_argument("paths", nargs="+", type=Path, help="ONNX files, and folders of them")
    parser.add_argument("--timeout", type=int, default=600, help="seconds a file may take (default: 600)")
    parser.add_argument("--json", type=Path, help="write every row to this file")


def main(options: argparse.Namespace) -> int:
    """Check the files and print the table; return 0 if none differs or fails."""
    files = [file for path in options.paths for file in (sorted(path.rglob("*.onnx")) if path.is_dir() else [path])]
    results = [_isolated(file, options.timeout) for file in track(files, "files", console=Console(stderr=True))]
    table = Table("file", "result", "runs", "relative error", "detail", title="ONNX files with dynamic sizes")
    for result in results:
        error = f"{result.error:.1e}" if result.runs else ""
        table.add_row(Path(result.path).name, result.status, str(result.runs or ""), error, result.detail[:300])
    console = Console()
    console.print(table)
    equal = sum(result.status == "equal" for result in results)
    console.print(f"{equal} of {len(results)} files give what ONNX Runtime gives")
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1))
    return int(any(result.status in ("different", "failed", LOST_SIZES) for result in results))


def _isolated(file: Path, timeout: int) -> FileResult:
    command = [sys.executable, "-m", "tests.coverage.files_table", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return FileResult(str(file), "failed", detail=f"took more than {timeout} s")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return FileResult(str(file), "failed", detail=f"exit status {done.returncode}: {done.stderr[-200:]}")
    return FileResult(**json.loads(lines[-1]))


def check_file(path: str) -> FileResult:
    """Compile one file and compare it wherever ONNX Runtime runs it."""
    import onnxruntime

    import compiler
    from compiler.errors import UserError

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1  # its ScatterND loses sums of the same row with several threads (1.32)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    cases = []
    for seed in SEEDS:
        feeds = random_feeds(session.get_inputs(), seed)
        try:
            cases.append((feeds, session.run(None, feeds)))
        except Exception as error:  # sizes that do not suit the net; ONNX Runtime raises its own exception classes
            refused = str(error)
    if not cases:
        return FileResult(path, "skipped", detail=refused)
    try:
        module = compiler.compile(path, threads=1, reference_inputs=cases[0][0])
    except UserError as error:
        return FileResult(path, "refused", detail=str(error))
    except Exception as error:
        return FileResult(path, "failed", detail=f"{type(error).__name__}: {error}")
    lost = lost_sizes(module.inputs, {each.name: each.shape for each in session.get_inputs()})
    if lost:
        return FileResult(path, LOST_SIZES, detail=lost)
    result = FileResult(path, "equal")
    for feeds, expected in cases:
        outputs = list(module.run(feeds).values())
        result.runs += 1
        for found, wanted in zip(outputs, expected, strict=True):
            result.error = max(result.error, difference(found, np.asarray(wanted)))
    if result.error > TOLERANCE:
        result.status = "different"
    return result


def lost_sizes(inputs: Iterable[Any], declared: Mapping[str, Sequence[Any]]) -> str:
    """Dimensions of a module's inputs that are numbers but symbolic in the declared shapes; "" if there are none."""
    lost = [
        f"dimension {axis} of {spec.name} is {size} instead of {wanted}"
        for spec in inputs
        for axis, (size, wanted) in enumerate(zip(spec.shape, declared.get(spec.name, spec.shape), strict=True))
        if isinstance(size, int) and not isinstance(wanted, int)
    ]
    return "; ".join(lost)


def random_feeds(inputs: Any, seed: int) -> dict[str, Array]:
    """Inputs by name: standard normal floats, integers and booleans of 0 and 1; dimensions of equal names are equal."""
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds = {}
    for spec in inputs:
        shape = [_size(spec, axis, sizes, seed) for axis in range(len(spec.shape))]
        dtype = _dtype(spec.type)
        if dtype.kind in "iub":
            feeds[spec.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            feeds[spec.name] = generator.standard_normal(shape).astype(dtype)
        if "len" in spec.name and dtype.kind == "i":  # signal length: must not exceed the signal
            feeds[spec.name] = np.full(shape, max(sizes.values(), default=1), dtype)
    return feeds


def _dtype(declared: str) -> np.dtype[Any]:
    """Element type of a name such as "tensor(float)"."""
    name = declared.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))


def _size(spec: Any, axis: int, sizes: dict[str, int], seed: int) -> int:
    declared, rank = spec.shape[axis], len(spec.shape)
    if isinstance(declared, int) and declared > 0:
        return declared
    name = declared if isinstance(declared, str) and declared not in ("?", "None") else f"{spec.name}:{axis}"
    if name not in sizes:
        if axis == 0:
            sizes[name] = _BATCH[seed]
        elif rank == 4:
            sizes[name] = 3 if axis == 1 else _IMAGE[seed][axis - 2]
        else:
            sizes[name] = _SIGNAL[seed] if rank == 2 and spec.type == "tensor(float)" else _SEQUENCE[seed]
    return sizes[name]


def difference(found: Array, wanted: Array) -> float:
    """Largest difference relative to the largest magnitude; infinite if shapes, types or NaNs differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if not wanted.size:
        return 0.0
    if wanted.dtype.kind not in "fc":
        return float((found != wanted).mean())
    if not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return float("inf")
    left, right = np.nan_to_num(found.astype(np.float64)), np.nan_to_num(wanted.astype(np.float64))
    return float(np.abs(left - right).max() / max(np.abs(right).max(), 1e-3))


if __name__ == "__main__":
    print(json.dumps(asdict(check_file(sys.argv[1]))))
