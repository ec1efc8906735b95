"""A model's module beside other runtimes on the same inputs: each in a process of its own, in turn."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import InternalError, MissingDependencyError, OptionError
from compiler.profiling.race import Entry, Result, race
from compiler.runtime import Module

PEERS = ("onnxruntime", "openvino")
_ROUNDS = 5


@dataclass(frozen=True)
class RuntimeTime:
    """One runtime's row.

    Attributes:
        p50: seconds of a run, the median over rounds of the median in a round.
        fastest: seconds of the fastest run.
        load: seconds from the file to the first result.
        items_per_second: rows per second.
        speedup: p50 over that of the module; above 1 the module is faster.
        difference: largest difference of an output from the module's, relative to the output's largest value.
    """

    runtime: str
    version: str
    p50: float
    fastest: float
    load: float
    items_per_second: float
    speedup: float
    difference: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def check_peers(names: Sequence[str], model: Path) -> None:
    """Raise OptionError for an unknown runtime or a file that is not an ONNX model, MissingDependencyError for one that
    is not installed."""
    for name in names:
        if name not in PEERS:
            raise OptionError(f"{name!r} is no runtime to compare with", f"name one of {', '.join(PEERS)}")
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(f"{name} is not installed", f"pip install {name}")
    if model.suffix != ".onnx":
        raise OptionError(f"{model}: other runtimes read ONNX files", "give the .onnx file that modules are made from")


def compare_runtimes(
    model: Path,
    module: Module,
    inputs: Mapping[str, np.ndarray],
    peers: Sequence[str],
    *,
    rows: int = 1,
    seconds: float = 3.0,
    report: Callable[[str], None] | None = None,
) -> list[RuntimeTime]:
    """Time a module and other runtimes in turn, with as many threads as the module has.

    Args:
        model: the ONNX file that the module was compiled from.
        inputs: by name, the same for all.
        peers: of `PEERS`; OpenVINO computes in float32.
        rows: items of a run.
        seconds: for each runtime, in five turns.
        report: receives a line about a runtime that cannot run the model, which is then left out.

    Raises:
        InputError: the inputs do not fit the module.
        InternalError: a runtime cannot run the model, and there is no `report`; or the module itself cannot.
    """
    module.run(inputs)  # raises what is wrong with them
    with tempfile.TemporaryDirectory(prefix="tensorwright-bench-") as folder:
        path, example = Path(folder) / "module.twm", Path(folder) / "inputs.npz"
        module.export(path)
        np.savez(example, allow_pickle=False, **inputs)
        entries = [Entry("tensorwright", path), *(Entry(name, model) for name in peers)]
        results = race(model.stem, [example], entries, module.threads, _ROUNDS, seconds / _ROUNDS, report=report)
    own = results[0] if results else None
    if own is None or own.label != "tensorwright":
        raise InternalError(f"{model.stem}: the module did not run in a process of its own")
    return [_row(result, own, rows) for result in results]


def _row(result: Result, own: Result, rows: int) -> RuntimeTime:
    p50 = statistics.median(result.medians())
    return RuntimeTime(
        runtime=result.label,
        version=result.version.rpartition(" ")[2],
        p50=p50,
        fastest=result.seconds("best"),
        load=result.load_seconds,
        items_per_second=rows / p50,
        speedup=p50 / statistics.median(own.medians()),
        difference=max(map(_difference, result.outputs, own.outputs), default=0.0),
    )


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest value; infinite for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.size:
        return 0.0
    wide, reference = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(wide - reference).max() / max(float(np.abs(reference).max()), 1e-30))
