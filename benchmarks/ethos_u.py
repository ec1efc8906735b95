"""The MLPerf Tiny nets on Ethos-U accelerators: what runs there, and Vela's estimates.

python -m benchmarks.ethos_u --target cortex-m55+ethos-u55-128     # the extra ethos-u is needed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

import compiler
import targets
from benchmarks.tiny_nets import NETS
from compiler.compression.quantization.insertion import insert_pairs
from compiler.compression.quantization.scheme import scheme_for
from compiler.compression.quantization.session import Session
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import import_model
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.runtime import Module
from targets.ethos_u import EthosU

_SAMPLES = 4


def quantized(model: onnx.ModelProto, target: EthosU) -> ImportedModel:
    """The model with every tensor rounded, calibrated on random inputs, its accuracy not measured."""
    imported = import_model(model)
    context = PipelineContext(target=target, machine=target.machine)
    imported = replace(imported, mod=run_pipeline(imported.mod, context, until="canonicalize").mod)
    rng = np.random.default_rng(0)
    spec = imported.inputs[0]
    shape = [int(size) for size in spec.shape]
    samples = [{spec.name: rng.standard_normal(shape).astype(np.float32)} for _ in range(_SAMPLES)]

    def compiled(candidate: ImportedModel) -> Module:
        return compiler.compile(candidate, "host", threads=1, records=False)

    session = Session(imported, samples, scheme_for(target), "min-max", (), compiled, lambda _: None)
    placement = session.place()
    return replace(session.model, mod=insert_pairs(session.model.mod, placement, session.numbers(placement)))


def measure(name: str, target: EthosU) -> dict[str, Any]:
    """The partition report of a net."""
    model = quantized(NETS[name](), target)
    context = PipelineContext(target=target, machine=target.machine, options={"checks": model.checks})
    run_pipeline(model.mod, context, until="partition")
    report: dict[str, Any] = context.reports["partition"]
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ethos_u", description=__doc__)
    parser.add_argument("--target", action="append", help="a target of the family; may be given several times")
    parser.add_argument("--net", action="append", choices=list(NETS))
    options = parser.parse_args(arguments)
    columns = ("net", "target", "operators", "MACs", "cycles", "ms", "SRAM", "flash/DRAM", "MAC use")
    table = Table(*columns)
    for name in options.net or NETS:
        for target_name in options.target or ["cortex-m55+ethos-u55-128"]:
            target = targets.get(target_name, cores=1)
            assert isinstance(target, EthosU)
            table.add_row(name, target_name, *_cells(measure(name, target), target))
    Console(width=140).print(table)


def _cells(report: dict[str, Any], target: EthosU) -> list[str]:
    estimate = report["estimate"]
    accessed, peak = estimate["bytes_accessed"], estimate["peak_bytes"]
    rate = target.accelerator.macs * target.accelerator.cores
    return [
        f"{report['operators']['share']:.0%}",
        f"{report['macs']['share']:.0%} of {report['macs']['accelerator'] / 1e6:.1f} M",
        f"{estimate['cycles']:,}",
        f"{estimate['milliseconds']:.2f}",
        f"{peak['sram'] / 1024:.0f} KiB, {accessed['sram'] / 1e6:.2f} MB",
        f"{(accessed['dram'] + accessed['off_chip_flash']) / 1e6:.2f} MB",
        f"{report['macs']['accelerator'] / rate / estimate['cycles']:.0%}",
    ]


if __name__ == "__main__":
    main()
