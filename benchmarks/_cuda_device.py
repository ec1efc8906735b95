"""`benchmarks.cuda` on a machine with a device: conformance suite, numerics, and interleaved timings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import compiler
from benchmarks._models import Task, cache_folder, task_of
from benchmarks._race import Entry, Result, race
from benchmarks.catalog import CATALOG
from compiler.driver.conformance import check_target
from compiler.errors import IncompatibleArtifactError
from targets.cuda.target import CudaTarget

HEADER = ("model", "ours ms", "torch.compile ms", "ONNX Runtime ms", "ratio", "differs from CPU", "within")
_OURS, _TORCH, _ONNXRUNTIME = "tensorwright", "torch-compile", "onnxruntime-cuda"


@dataclass(frozen=True)
class DeviceRow:
    """A model on the device: seconds per run by contestant, and the largest difference from the CPU module over that
    output's largest value."""

    model: str
    difference: float
    tolerance: float
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        return self.difference <= self.tolerance

    @property
    def ratio(self) -> float | None:
        """The faster other runtime's time over ours: above 1 if ours is faster. None without another runtime."""
        peers = [value for name, value in self.seconds.items() if name != _OURS]
        return min(peers) / self.seconds[_OURS] if peers and _OURS in self.seconds else None

    def cells(self) -> list[str]:
        """A cell for each column of `HEADER`."""
        times = [
            f"{1e3 * self.seconds[name]:.3f}" if name in self.seconds else "-" for name in (_OURS, _TORCH, _ONNXRUNTIME)
        ]
        ratio = "-" if self.ratio is None else f"{self.ratio:.2f}"
        return [self.model, *times, ratio, f"{self.difference:.1e}", "yes" if self.is_right else "NO"]


def require_device(target: CudaTarget) -> None:
    """Raise IncompatibleArtifactError, with what to do, unless this machine has a device for the target."""
    if missing := target.missing_features():
        raise IncompatibleArtifactError(
            f"target {target.name!r} cannot run here: this machine lacks {', '.join(missing)}",
            "run it on a machine with such a device, or leave out --device to examine the kernels",
        )


def failed_checks(target: CudaTarget, report: Callable[[str], None]) -> int:
    """Run the conformance suite and report each check. Returns the number of failures."""
    failed = 0
    for outcome in check_target(target):
        failed += outcome.problem is not None
        report(f"{outcome.check}: {'ok' if outcome.problem is None else outcome.problem}")
    return failed


def measure(name: str, target: CudaTarget, *, rounds: int, seconds: float, report: Callable[[str], None]) -> DeviceRow:
    """Measure a model of the catalog: first correctness, then interleaved times. Raises as compiling."""
    task = task_of(name, CATALOG[name].sizes[0] or None)
    artifact = cache_folder() / f"{task.name}-{target.name}.twm"
    module = compiler.compile(str(task.path), target, shapes=task.shapes)
    module.export(artifact)
    worst = difference(module, task)
    return row(name, worst, race(task, entries(name, artifact, task), 1, rounds, seconds, report=report))


def difference(module: object, task: Task) -> float:
    """Return the largest difference between a module's outputs and the CPU's, over the output's largest value."""
    with np.load(task.arrays) as stored:
        inputs = {key: np.asarray(stored[key], order="C") for key in stored.files}
    host = compiler.compile(str(task.path), "host", shapes=task.shapes, records=False)
    found, expected = module.run(inputs).values(), host.run(inputs).values()  # type: ignore[attr-defined]
    worst = 0.0
    for actual, reference in zip(found, expected, strict=True):
        if actual.shape != reference.shape or not np.array_equal(np.isnan(actual), np.isnan(reference)):
            return math.inf
        if actual.size:
            wide = np.nan_to_num(actual.astype(np.float64)), np.nan_to_num(reference.astype(np.float64))
            worst = max(worst, float(np.abs(wide[0] - wide[1]).max() / max(float(np.abs(wide[1]).max()), 1e-30)))
    return worst


def entries(name: str, artifact: Path, task: Task) -> list[Entry]:
    """Return the contestants; includes torch.compile if the model is a PyTorch module."""
    found = [Entry(_OURS, artifact), Entry(_ONNXRUNTIME, task.path)]
    return [*found, Entry(_TORCH, Path(name))] if CATALOG[name].reference == "torch" else found


def row(name: str, worst: float, results: Sequence[Result]) -> DeviceRow:
    """Return the row of a comparison."""
    return DeviceRow(name, worst, CATALOG[name].tolerance, {each.label: each.seconds("median") for each in results})
