"""Build one entry of a pack: the module, a description of its data, and simulated results of its kernels."""

from __future__ import annotations

import gzip
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_pack.compact import Compactor
from benchmarks.gpu_pack.driver import PROGRAM
from benchmarks.gpu_pack.kernel_table import KernelTable
from benchmarks.gpu_pack.references import SAMPLES, reference, tolerance
from benchmarks.gpu_pack.seeded import Array, Weight
from compiler.artifact import Artifact
from compiler.driver.build import packed
from compiler.errors import VerificationError
from compiler.frontends.source import import_model
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from targets.cuda.image import has_source, source_of
from targets.cuda.simulator import CudaSimulator
from targets.cuda.target import CudaTarget


@dataclass(frozen=True)
class Case:
    """Inputs as a pack describes them, and expected arrays by output name."""

    inputs: Sequence[Mapping[str, Any]]
    outputs: Mapping[str, Array]


@dataclass(frozen=True)
class Model:
    """Components of an entry.

    Attributes:
        source, keywords: arguments of `import_model`.
        weights: generated weights of the model.
        arrays: inputs that are not generated from seeds, by name.
        tolerance, call_tolerance: tolerances of outputs, and of results of single kernels.
    """

    source: Any
    keywords: Mapping[str, Any]
    cases: Sequence[Case]
    tolerance: Mapping[str, float]
    call_tolerance: Mapping[str, float]
    weights: Sequence[Weight] = ()
    arrays: Mapping[str, Array] = field(default_factory=dict)
    samples: int = SAMPLES
    precision: str = "float32"


@dataclass(frozen=True)
class Written:
    """A written entry: bytes on disk, the bytes of stored parameters, and kernels."""

    bytes: int
    stored: Mapping[str, int]
    kernels: int
    calls: int


def compiled(model: Model, target: CudaTarget) -> tuple[Artifact, dict[str, Any]]:
    """Compile a model; return the module and the table of its kernels. Raises as compiling."""
    arguments = {"shapes": None, "constants": None, "example_inputs": None, "dynamic_shapes": None, **model.keywords}
    imported = import_model(model.source, **arguments)
    table = KernelTable()
    options = PassOptions(model.precision, imported.checks)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    pipeline = run_pipeline(imported.mod, context, passes=table.passes())
    artifact = packed(imported, "entry", target, pipeline, 1)
    return artifact, table.kernels(pipeline.report.operations)


def write_entry(name: str, model: Model, target: CudaTarget, pack: Path, *, max_operations: float) -> Written:
    """Write an entry into a pack that already has its programs.

    Args:
        max_operations: an entry with at most this many operations is simulated, its results are compared, and the
            expected results of each kernel are written. The simulation computes some 10^8 per second.

    Raises:
        VerificationError: the simulated results differ from the reference.
        Others: as compiling raises.
    """
    artifact, kernels = compiled(model, target)
    folder = pack / "entries" / name
    folder.mkdir(parents=True)
    compactor = Compactor(model.weights)
    text: dict[str, Any] = {
        "target": target.name,
        "compute_capability": target.machine.compute_capability,
        "simulated": int(target.simulated),
        "precision": model.precision,
        "parameters": _parameters(artifact, compactor),
        "kernels": kernels,
        "calls": [],
        "tolerance": model.tolerance,
        "call_tolerance": model.call_tolerance,
    }
    record = sum(each["operations"] * each["calls"] for each in kernels.values()) <= max_operations
    numbers = bytearray()
    text["cases"] = [_case(each, model, artifact, compactor, numbers) for each in model.cases]
    _write(folder / "model.so", bytes(artifact.library))
    source = source_of(artifact.library).text if has_source(artifact.library) else ""
    _write(folder / "kernels.cu", source.encode())
    _write(folder / "stored.bin", bytes(compactor.stored))
    if record or target.simulated:
        calls, recorded = _recorded(name, folder, pack, artifact, target, text, numbers, keep=target.simulated)
        text["calls"], numbers = (calls, numbers + recorded) if record else ([], numbers)
    _write(folder / "references.bin", bytes(numbers))
    _write(folder / "entry.json", json.dumps(text).encode())
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Written(size, dict(compactor.stored_bytes), len(kernels), len(text["calls"]))


def _parameters(artifact: Artifact, compactor: Compactor) -> list[dict[str, Any]]:
    specs, arrays = artifact.manifest.parameters, artifact.parameters
    if artifact.manifest.compact_parameters:
        raise VerificationError("the module expands parameters when it is loaded, which packs do not do")
    return [compactor.describe(spec.name, spec.carrier or spec.dtype, arrays[spec.name]) for spec in specs]


def _case(case: Case, model: Model, artifact: Artifact, compactor: Compactor, numbers: bytearray) -> dict[str, Any]:
    # In the order of the model's inputs, whose names may differ from the source's.
    described = [dict(each) for each in case.inputs]
    if not described:
        specs = [(spec, model.arrays.get(spec.name)) for spec in artifact.manifest.inputs]
        if any(array is None for _, array in specs):
            specs = list(zip(artifact.manifest.inputs, model.arrays.values(), strict=True))
        described = [
            compactor.describe(spec.name, spec.carrier or spec.dtype, array)
            for spec, array in specs
            if array is not None
        ]
    if len(described) != len(artifact.manifest.inputs):
        raise VerificationError(
            f"the module takes {len(artifact.manifest.inputs)} inputs, and {len(described)} are described"
        )
    outputs = []
    for spec, array in zip(artifact.manifest.outputs, case.outputs.values(), strict=True):
        of_output, packed_numbers = reference(spec.name, array, model.samples)
        outputs.append(of_output)
        numbers += packed_numbers
    return {"inputs": described, "outputs": outputs}


def _write(path: Path, content: bytes) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content, 9, mtime=0))


def _recorded(
    name: str,
    folder: Path,
    pack: Path,
    artifact: Artifact,
    target: CudaTarget,
    text: Mapping[str, object],
    numbers: bytearray,
    *,
    keep: bool,
) -> tuple[list[Any], bytes]:
    """Return the calls of a simulated run and their results. `keep` keeps the simulated kernels in the entry's
    folder."""
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as scratch:
        simulator = CudaSimulator(target.host.compiler())
        library = simulator.compiled(source_of(artifact.library), Path(scratch), strict=True)
        copy = Path(scratch) / "entries" / name
        copy.mkdir(parents=True)
        for part in ("model.so.gz", "stored.bin.gz"):
            (copy / part).symlink_to((folder / part).resolve())
        _write(copy / "kernels.so", library.read_bytes())
        _write(copy / "references.bin", bytes(numbers))
        _write(copy / "entry.json", json.dumps({**text, "simulated": 1}).encode())
        if keep:
            _write(folder / "kernels.so", library.read_bytes())
        output = Path(scratch) / "recorded"
        done = subprocess.run(
            [str(pack / "bin" / PROGRAM), scratch, "--record", name, str(output)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise VerificationError(f"the simulation of {name} failed: {done.stderr.strip()[-2000:]}")
        summary = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
        if summary["problem"]:
            raise VerificationError(f"the simulation of {name} is wrong: {summary['problem']}")
        return list(summary["calls"]), output.with_suffix(".bin").read_bytes()


def arrays_of(inputs: Sequence[Mapping[str, Any]]) -> dict[str, Array]:
    """Generate the inputs that a pack describes by seeds."""
    from benchmarks.gpu_pack.generator import integers, reals

    result: dict[str, Array] = {}
    for spec in inputs:
        make, count = spec["make"], int(np.prod(spec["shape"]))
        drawn = (
            reals(make["seed"], count)
            if make["kind"] == "reals"
            else integers(make["seed"], count, make["low"], make["high"])
        )
        result[spec["name"]] = drawn.reshape(spec["shape"]).astype(np.dtype(spec["dtype"]))
    return result


__all__ = ["Case", "Model", "Written", "arrays_of", "compiled", "tolerance", "write_entry"]
