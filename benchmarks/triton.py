"""python -m benchmarks.triton [FOLDER] [--json FILE]: requests per second of Triton Inference Server.

It compares our backend with ONNX Runtime in Triton's Python backend, on a tiny net and MiniLM. Both have the same
batching, one instance per processor, and one thread per run. wrk sends JSON over 1, 8 and 32 connections; the servers
alternate, and each cell is the best of three rounds. Needs tests/system/install_triton.sh, wrk, and onnxruntime in
Triton's environment.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import targets
from benchmarks._serving_models import build
from benchmarks._wrk import Load, load
from compiler.artifact import read_artifact
from compiler.serving.triton import TritonOptions, write_triton_repository
from compiler.serving.triton.repository import configuration_text
from targets.processors import usable_processors
from tests.compiler.serving.triton.server import Installation, installation, triton_server

MODELS = ("tiny", "minilm")
CONNECTIONS = (1, 8, 32)
SECONDS, ROUNDS = 2, 3
_ROWS = 32


@dataclass
class Cell:
    """The best of the rounds: requests per second, and latencies of that round in milliseconds."""

    server: str
    model: str
    connections: int
    per_second: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("build/serving-models"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    installed = installation()
    if installed is None or shutil.which("wrk") is None:
        sys.exit("needs tests/system/install_triton.sh and wrk (apt-get install wrk)")
    build(options.folder)
    with TemporaryDirectory() as scratch:
        served = {
            "ours": _ours(installed, options.folder, Path(scratch) / "ours"),
            "onnxruntime": _onnx_runtime(installed, options.folder, Path(scratch) / "onnxruntime"),
        }
        cells = _measured(installed, served, Path(scratch))
    print(f"{'server':12} {'model':8} {'connections':>11} {'requests/s':>10} {'p50 ms':>8} {'p99 ms':>8}")
    for cell in cells:
        times = f"{cell.per_second:10.0f} {cell.p50:8.2f} {cell.p99:8.2f}"
        print(f"{cell.server:12} {cell.model:8} {cell.connections:11} {times}")
    if options.json:
        options.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")


def _ours(installed: Installation, models: Path, folder: Path) -> Path:
    target = targets.get("host")
    for name in MODELS:
        file = models / f"{name}.twm"
        options = TritonOptions(max_batch_size=_ROWS, instances=usable_processors())
        write_triton_repository(read_artifact(file), file, target, folder, options)
    backend = folder / "backends" / "tensorwright"
    subprocess.run(["make", "-s", "-C", backend, f"TRITON_HEADERS={installed.headers}"], check=True)
    return folder


def _onnx_runtime(installed: Installation, models: Path, folder: Path) -> Path:
    backend = folder / "backends" / "python"
    shutil.copytree(installed.server / "backends" / "python", backend)
    version = subprocess.run(
        [installed.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
    )
    for stub in (installed.server / "python_backend_stubs" / version.stdout.strip()).iterdir():
        shutil.copy(stub, backend)
    for name in MODELS:
        place = folder / "models" / name / "1"
        place.mkdir(parents=True)
        shutil.copy(models / f"{name}.onnx", place / "model.onnx")
        shutil.copy(Path(__file__).with_name("_triton_model.py"), place / "model.py")
        text = configuration_text(name, read_artifact(models / f"{name}.twm").manifest, _ROWS, usable_processors())
        (place.parent / "config.pbtxt").write_text(text.replace('"tensorwright"', '"python"'))
    return folder


@contextmanager
def _serving(installed: Installation, folder: Path) -> Iterator[int]:
    """Run a server for one folder, and yield its HTTP port."""
    packages = next((installed.python.parents[1] / "lib").glob("python3.*/site-packages"))
    environment = {"TVM_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(packages)}
    with triton_server(installed, folder / "models", folder / "backends", MODELS, environment) as (http, *_):
        yield http


def triton_contestants(models: Path, made: Path) -> dict[str, Callable[[], AbstractContextManager[int]]]:
    """Return servers of both kinds by name, each a context of its HTTP port; none if Triton is not installed."""
    installed = installation()
    if installed is None:
        return {}
    ours = _ours(installed, models, made / "ours")
    onnxruntime_models = _onnx_runtime(installed, models, made / "onnxruntime")
    return {
        "Triton with our backend": lambda: _serving(installed, ours),
        "Triton with ONNX Runtime": lambda: _serving(installed, onnxruntime_models),
    }


def _measured(installed: Installation, served: dict[str, Path], scratch: Path) -> list[Cell]:
    cells = [Cell(server, model, count) for model in MODELS for count in CONNECTIONS for server in served]
    for _ in range(ROUNDS):
        for server, folder in served.items():
            with _serving(installed, folder) as http:
                for cell in cells:
                    if cell.server == server:
                        _keep_best(cell, load(http, cell.model, cell.connections, SECONDS, scratch))
    return cells


def _keep_best(cell: Cell, found: Load) -> None:
    if found.per_second > cell.per_second:
        cell.per_second, cell.p50, cell.p99 = found.per_second, found.p50, found.p99


if __name__ == "__main__":
    main()
