"""Cycles of the MLPerf Tiny nets on Ethos-U accelerators, untuned and tuned, compared with hardware bounds.

Cycles are Vela's estimate for the accelerator; "processor" is a rough estimate of the Cortex-M's additional cycles. Two
bounds: multiply-adds over the multipliers, and bytes of weights over the bandwidth of their memory. The nets are
quantized by ONNX Runtime, as written by `python -m benchmarks.tiny_nets`, and tuned with the shipped records or, with
--search, again.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

import targets
from benchmarks.tiny_nets import NETS, quantized_by_onnx_runtime
from compiler.artifact.storage import write_json
from compiler.frontends.source import import_model
from compiler.records.identity import model_fingerprint
from compiler.records.library import tuned_configs
from compiler.tuning.networks import network_cost
from compiler.tuning.tune import tune
from targets.ethos_u import EthosU
from targets.measure import Setting

TARGETS = ("cortex-m55+ethos-u55-128", "cortex-m55+ethos-u65-256")
_BYTES_A_CYCLE = {"Ethos_U55_High_End_Embedded": 1.0, "Ethos_U65_High_End": 3.75}  # flash or DRAM; Arm/vela.ini


@dataclass(frozen=True)
class Row:
    """One net on one target; cycles of the accelerator, and of the processor."""

    target: str
    net: str
    untuned: float
    tuned: float
    in_sram: float
    processor_untuned: float
    processor_tuned: float
    sram_untuned: int
    sram_tuned: int
    sram_in_sram: int
    bound_by_macs: float
    bound_by_weights: float
    settings: Mapping[str, Setting]

    @property
    def ratio(self) -> float:
        """Cycles of the tuned net over those of the untuned one."""
        return self.tuned / self.untuned


def compare(options: argparse.Namespace, console: Console) -> None:
    """Measure, print the table and write the JSON."""
    rows = [_row(name, target, options) for target in options.target or TARGETS for name in options.net or NETS]
    table = Table("target", "net", "cycles", "tuned", "ratio", "weights in SRAM", "MACs allow", "weights allow", "SRAM")
    for row in rows:
        cells = (row.untuned, row.tuned, row.in_sram, row.bound_by_macs, row.bound_by_weights)
        cycles = [f"{value:,.0f}" for value in cells]
        sizes = f"{row.sram_untuned / 1024:.0f}, {row.sram_tuned / 1024:.0f}, {row.sram_in_sram / 1024:.0f} KiB"
        table.add_row(row.target, row.net, cycles[0], cycles[1], f"{row.ratio:.3f}", *cycles[2:], sizes)
    console.print(table)
    means = {}
    for target in dict.fromkeys(row.target for row in rows):
        mine = [row.ratio for row in rows if row.target == target]
        means[target] = math.exp(sum(map(math.log, mine)) / len(mine))
        console.print(f"{target}: geometric mean of the ratios {means[target]:.3f}, largest {max(mine):.3f}")
    if options.output:
        write_json(Path(options.output), {"rows": [asdict(row) for row in rows], "geometric_means": means})


def _row(name: str, target_name: str, options: argparse.Namespace) -> Row:
    target = targets.get(target_name, cores=1)
    assert isinstance(target, EthosU)
    model = import_model(quantized_by_onnx_runtime(name))
    if options.search:
        tune(model, target, records=options.records, progress=None)
    records = options.records if options.search else None
    chosen = tuned_configs(target, records, model_fingerprint(model.mod, "float32")).settings
    untuned, tuned = network_cost(model, target), network_cost(model, target, chosen)
    in_sram = network_cost(model, target, {"weights": "in SRAM"})
    accelerator = target.accelerator
    weights = untuned.parts.get("dram bytes", untuned.parts.get("off_chip_flash bytes", 0.0))
    return Row(
        target=target_name,
        net=name,
        untuned=untuned.parts["accelerator"],
        tuned=tuned.parts["accelerator"],
        in_sram=in_sram.parts["accelerator"],
        processor_untuned=untuned.parts["processor"],
        processor_tuned=tuned.parts["processor"],
        sram_untuned=untuned.memory,
        sram_tuned=tuned.memory,
        sram_in_sram=in_sram.memory,
        bound_by_macs=untuned.parts["multiply-adds"] / (accelerator.macs * accelerator.cores),
        bound_by_weights=weights / _BYTES_A_CYCLE[accelerator.system],
        settings=chosen,
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add command-line options."""
    parser.add_argument("--target", action="append", help=f"{' and '.join(TARGETS)} if not given")
    parser.add_argument("--net", action="append", choices=list(NETS))
    parser.add_argument("--search", action="store_true", help="tune again, instead of using the shipped records")
    parser.add_argument("--records", default=tempfile.gettempdir() + "/tensorwright-ethos-u", help="of --search")
    parser.add_argument("--output", default="", help="JSON file")
