"""The real-model table: each model of the catalog compiled, run, and compared with ONNX Runtime or torch.

Each model has its own process, so that a crash or a hang costs one row.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from benchmarks.catalog import CATALOG, CatalogModel, Inputs, inputs_for

SEEDS = (0, 1)
TIMEOUT_SECONDS = 600
LEFT_OUT = "left out"


@dataclass
class ModelResult:
    """One row. `error` is the largest difference, relative to the largest magnitude of its output tensor."""

    name: str
    status: str
    runs: int = 0
    error: float = 0.0
    compile_seconds: float = 0.0
    detail: str = ""


def check_model(name: str, target: str = "host", largest_megabytes: float | None = None) -> ModelResult:
    """Compile one model and compare it at each of its sizes, on random inputs of two seeds.

    For another target than this machine, on the last of its sizes and one seed, under the target's emulator. A model
    whose parameters are more than the limit is left out.
    """
    import compiler
    from compiler.errors import TensorwrightError

    entry = CATALOG[name]
    source = entry.load()
    if largest_megabytes is not None and (size := _megabytes(source)) > largest_megabytes:
        return ModelResult(name, LEFT_OUT, detail=f"{size:.0f} MB")
    start = time.perf_counter()
    try:
        module = compiler.compile(source, target, threads=None if target == "host" else 1, **_options(entry))
    except TensorwrightError as error:
        return ModelResult(name, "refused", detail=str(error))
    result = ModelResult(name, "equal", compile_seconds=time.perf_counter() - start)
    reference = _Reference(entry, source)
    here = target == "host"
    for seed in SEEDS if here else SEEDS[:1]:
        for sizes in entry.sizes if here else entry.sizes[-1:]:
            inputs = inputs_for(entry, seed, sizes)
            outputs = list(module.run(inputs).values())
            _compare(result, outputs, reference.run(inputs), entry.tolerance, f"seed {seed}, sizes {dict(sizes)}")
            result.runs += 1
    return result


def _megabytes(source: Any) -> float:
    """Digest of an ONNX file or model, or of a torch module's parameters."""
    if isinstance(source, str | Path):
        return Path(source).stat().st_size / 1e6
    if isinstance(source, onnx.ModelProto):
        return source.ByteSize() / 1e6
    return sum(each.numel() * each.element_size() for each in source.parameters()) / 1e6


def _options(entry: CatalogModel) -> dict[str, Any]:
    if entry.reference != "torch":
        return {"shapes": entry.shapes, "constants": entry.constants}
    import torch

    return {"example_inputs": tuple(torch.from_numpy(array) for array in inputs_for(entry).values())}


class _Reference:
    """ONNX Runtime for files and ONNX models, PyTorch for modules."""

    def __init__(self, entry: CatalogModel, source: Any) -> None:
        self._entry = entry
        self._source = source
        self._session: Any = None
        if entry.reference == "onnxruntime":
            import onnxruntime

            model = source.SerializeToString() if isinstance(source, onnx.ModelProto) else str(source)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1  # its ScatterND loses sums of the same row with several threads (1.32)
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Inputs) -> list[np.ndarray[Any, Any]]:
        if self._session is not None:
            return list(self._session.run(None, inputs))
        import torch

        with torch.no_grad():
            outputs = self._source(*(torch.from_numpy(array) for array in inputs.values()))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _compare(
    result: ModelResult,
    outputs: list[np.ndarray[Any, Any]],
    expected: list[np.ndarray[Any, Any]],
    tolerance: float,
    where: str,
) -> None:
    if len(outputs) != len(expected):
        result.status, result.detail = "wrong", f"{len(outputs)} outputs, expected {len(expected)}"
        return
    for index, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            result.status = "wrong"
            result.detail = f"output {index}, {where}: {ours.dtype}{ours.shape}, expected {theirs.dtype}{theirs.shape}"
            return
        error = relative_error(ours, theirs)
        result.error = max(result.error, error)
        if not error <= tolerance:
            result.status, result.detail = "wrong", f"output {index}, {where}: relative error {error:.2e}"


def relative_error(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """Largest difference relative to the largest magnitude; infinite if only one of two values is NaN."""
    if theirs.size == 0:
        return 0.0
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return float("inf")
    finite = np.isfinite(right)
    if not finite.any():
        return 0.0
    return float(np.abs(left - right)[finite].max() / max(np.abs(right)[finite].max(), 1e-6))


def run_models(names: Iterable[str], *settings: str) -> list[ModelResult]:
    """Run each model in its own process. `settings`: a target, and the largest model size in megabytes."""
    return [_run_in_process(name, *settings) for name in names]


def _run_in_process(name: str, *settings: str) -> ModelResult:
    command = [sys.executable, "-m", "tests.coverage.models", name, *settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return ModelResult(name, "timeout", detail=f"more than {TIMEOUT_SECONDS} s")
    if done.returncode != 0:
        return ModelResult(name, "crash", detail=(done.stderr.strip().splitlines() or ["no message"])[-1])
    fields: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return ModelResult(**fields)


def print_table(results: list[ModelResult], console: Console | None = None) -> None:
    """The real-model table."""
    table = Table(title="Real models against ONNX Runtime or torch")
    for column in ("model", "reference", "result", "runs", "relative error", "compile s", "detail"):
        table.add_column(column, overflow="fold")
    for result in results:
        table.add_row(
            result.name,
            CATALOG[result.name].reference,
            result.status,
            str(result.runs),
            f"{result.error:.1e}",
            f"{result.compile_seconds:.1f}",
            result.detail,
        )
    console = console or Console()
    console.print(table)
    equal = sum(result.status == "equal" for result in results)
    checked = sum(result.status != LEFT_OUT for result in results)
    console.print(f"{equal} of {checked} models equal their reference")


def select(pattern: str | None) -> list[str]:
    """Names in the catalog that contain the pattern, or all."""
    return [name for name in CATALOG if pattern is None or pattern in name]


def write_json(results: list[ModelResult], path: Path) -> None:
    """The table for a machine."""
    path.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")


if __name__ == "__main__":
    try:
        target, limit = sys.argv[2:4] if len(sys.argv) > 2 else ("host", "inf")
        outcome = check_model(sys.argv[1], target, float(limit))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
    print(json.dumps(asdict(outcome)))
