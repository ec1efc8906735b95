"""The MLPerf Tiny nets on Ethos-U accelerators: their partition, and Vela's estimates.

python -m benchmarks.ethos_u --target cortex-m55+ethos-u55-128     # needs the extra ethos-u
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import tvm
from rich.console import Console
from rich.table import Table
from tvm import relax

import compiler
import targets
from benchmarks.tiny_nets import NETS
from compiler.compression.quantization.calibration import scheme_for
from compiler.compression.quantization.insertion import insert_pairs
from compiler.compression.quantization.session import Session
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import import_model
from compiler.passes.context import CompilationReport, PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.runtime import Module
from targets.ethos_u import EthosU

_SAMPLES = 4


def quantized(model: onnx.ModelProto, target: EthosU, *, naive: bool = False) -> ImportedModel:
    """Return the quantized model, calibrated on random inputs; its accuracy is not measured.

    Args:
        naive: without the graph passes, operator by operator.
    """
    imported = import_model(model)
    imported = replace(imported, mod=_prepared(imported, target, naive, "canonicalize")[0])
    rng = np.random.default_rng(0)
    spec = imported.inputs[0]
    shape = [int(size) for size in spec.shape]
    samples = [{spec.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(_SAMPLES)]

    def compiled(candidate: ImportedModel) -> Module:
        return compiler.compile(candidate, "host", threads=1, records=False)

    session = Session(imported, samples, scheme_for(target), "min-max", (), compiled, lambda _: None)
    placement = session.place()
    return replace(session.model, mod=insert_pairs(session.model.mod, placement, session.numbers(placement)))


def _prepared(model: ImportedModel, target: EthosU, naive: bool, until: str) -> tuple[tvm.IRModule, CompilationReport]:
    """Return the module after a phase, and the report of the passes."""
    context = PipelineContext(target=target, machine=target.machine, options=PassOptions(checks=model.checks))
    # Later, folding would convert the quantized weights to floats.
    passes = {"instead-of:canonicalize": _decomposed if until == "canonicalize" else "normalize"} if naive else None
    result = run_pipeline(model.mod, context, passes=passes, until=until)
    return result.mod, context.report


def _decomposed(mod: tvm.IRModule, context: PipelineContext) -> tvm.IRModule:
    """Replace the passes: split batch normalizations into four operators, and evaluate constants."""
    for step in (
        relax.transform.DecomposeOpsForInference(),
        relax.transform.FoldConstant(),
        relax.transform.Normalize(),
    ):
        mod = step(mod)
    return mod


def measure(name: str, target: EthosU, *, naive: bool = False) -> dict[str, Any]:
    """Return the partition report of a net."""
    model = quantized(NETS[name](), target, naive=naive)
    report = _prepared(model, target, naive, "partition")[1].partition
    assert report is not None
    return dict(report)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ethos_u", description=__doc__)
    parser.add_argument("--target", action="append", help="a target of the family; may be given several times")
    parser.add_argument("--net", action="append", choices=list(NETS))
    parser.add_argument(
        "--naive", action="store_true", help="also without the graph passes: cycles, and in how many parts"
    )
    options = parser.parse_args(arguments)
    columns = ("net", "target", "operators", "MACs", "cycles", "without passes", "ms", "SRAM", "flash/DRAM", "MAC use")
    table = Table(*columns)
    for name in options.net or NETS:
        for target_name in options.target or ["cortex-m55+ethos-u55-128"]:
            target = targets.get(target_name, cores=1)
            assert isinstance(target, EthosU)
            report, plain = measure(name, target), measure(name, target, naive=True) if options.naive else None
            table.add_row(name, target_name, *_cells(report, plain, target))
    Console(width=140).print(table)


def _cells(report: dict[str, Any], plain: dict[str, Any] | None, target: EthosU) -> list[str]:
    estimate = report["estimate"]
    accessed, peak = estimate["bytes_accessed"], estimate["peak_bytes"]
    rate = target.accelerator.macs * target.accelerator.cores
    return [
        f"{report['operators']['share']:.0%}",
        f"{report['macs']['share']:.0%} of {report['macs']['accelerator'] / 1e6:.1f} M",
        f"{estimate['cycles']:,}",
        "" if plain is None else _without_passes(plain),
        f"{estimate['milliseconds']:.2f}",
        f"{peak['sram'] / 1024:.0f} KiB, {accessed['sram'] / 1e6:.2f} MB",
        f"{(accessed['dram'] + accessed['off_chip_flash']) / 1e6:.2f} MB",
        f"{report['macs']['accelerator'] / rate / estimate['cycles']:.0%}",
    ]


def _without_passes(plain: dict[str, Any]) -> str:
    if not plain["segments"]:
        return "nothing is taken"
    return f"{plain['estimate']['cycles']:,} in {plain['segments']} parts"


if __name__ == "__main__":
    main()
