"""Arm's compiler for the Ethos-U: from a TOSA graph to a command stream, with an estimate of its cost."""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from targets.errors import TargetError, ToolchainMissing
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.program import Program, TensorLocation
from targets.ethos_u.settings import VelaOptions
from targets.extras import install_command


@dataclass(frozen=True)
class Compiled:
    """Vela's output: the program and its tables, one row per operator, and totals."""

    program: Program
    layers: list[dict[str, str]]
    summary: dict[str, str]


@cache
def require() -> None:
    """Raise ToolchainMissing, with the command that installs them, if Vela or the TOSA tools are missing."""
    import importlib.util

    for module, package in (("ethosu.vela", "ethos-u-vela"), ("tosa_serializer", "tosa-tools")):
        try:
            missing = importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            message = f"{package}, which compiles for the Ethos-U, is not installed"
            raise ToolchainMissing(message, install_command("ethos-u"))


def version() -> str:
    """Version of Vela. Raises ToolchainMissing if it is not installed."""
    import importlib.metadata

    require()
    return importlib.metadata.version("ethos-u-vela")


def compile_graph(tosa: bytes, accelerator: Accelerator, options: VelaOptions | None = None) -> Compiled:
    """Compile a graph.

    Raises:
        TargetError: Vela refuses it; contains Vela's output.
        ToolchainMissing: it is not installed.
    """
    require()
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        source = Path(folder) / "graph.tosa"
        source.write_bytes(tosa)
        log = _run(source, accelerator, options or VelaOptions())
        result = Path(folder) / "graph_vela.npz"
        if not result.exists():
            raise TargetError(f"Vela produced no output for a graph: {log.strip()[-800:]}", "please report the model")
        with np.load(result, allow_pickle=True) as arrays:
            program = _program({name: arrays[name] for name in arrays.files}, accelerator)
        if accelerator.is_u85:
            program = replace(program, graph=tosa)
        layers = list(_rows(next(Path(folder).glob("*per-layer.csv"))))
        summary = next(iter(_rows(next(Path(folder).glob("*summary*.csv")))))
    return Compiled(program, layers, summary)


def _run(source: Path, accelerator: Accelerator, options: VelaOptions) -> str:
    from ethosu.vela import vela

    arguments = ["--config", "Arm/vela.ini", "--accelerator-config", accelerator.name]
    arguments += ["--system-config", accelerator.system, "--memory-mode", options.memory(accelerator)]
    arguments += ["--optimise", options.optimise]
    arguments += ["--arena-cache-size", str(options.arena)] if options.arena else []
    arguments += ["--output-format", "raw", "--verbose-performance", "--output-dir", str(source.parent), str(source)]
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            vela.main(arguments)
    except SystemExit as error:
        if error.code not in (0, None):
            raise TargetError(f"Vela failed: {log.getvalue().strip()[-800:]}", "please report the model") from error
    except Exception as error:
        raise TargetError(f"Vela failed: {error} {log.getvalue().strip()[-800:]}", "please report the model") from error
    return log.getvalue()


def _program(arrays: dict[str, np.ndarray], accelerator: Accelerator) -> Program:
    def locations(kind: str) -> tuple[TensorLocation, ...]:
        regions = np.atleast_1d(arrays[f"{kind}_region"])
        offsets, shapes = np.atleast_1d(arrays[f"{kind}_offset"]), list(arrays[f"{kind}_shape"])
        sizes = np.atleast_1d(arrays[f"{kind}_elem_size"])
        regions = np.broadcast_to(regions, len(offsets))
        return tuple(
            TensorLocation(int(region), int(offset), int(np.prod([int(size) for size in shape])) * int(element))
            for region, offset, shape, element in zip(regions, offsets, shapes, sizes, strict=True)
        )

    scratch = {int(arrays["scratch_region"]): int(arrays["scratch_shape"][0])}
    if "scratch_fast_region" in arrays:
        scratch.setdefault(int(arrays["scratch_fast_region"]), int(arrays["scratch_fast_shape"][0]))
    return Program(
        accelerator.name,
        arrays["cmd_data"].tobytes(),
        arrays["weight_data"].tobytes(),
        int(arrays["weight_region"]),
        scratch,
        locations("input"),
        locations("output"),
    )


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield {str(key).strip(): str(value).strip() for key, value in row.items()}
