"""Checks that int8 is never slower than float32: each net of the catalog, statically quantized, against its float form.

    python -m benchmarks.never_slower                          # all of the catalog; hours of compiling
    python -m benchmarks.never_slower resnet18 swin_t
    python -m benchmarks.never_slower resnet18 --make          # compile and keep the modules, time them later

Calibration data is random and the accuracy limit is off: layers go back to float only for speed. Times are processor
time of one thread, both forms alternating; a ratio is the median over the rounds, float over int8. Modules are stored
in `--modules` and reused. Exits with 1 if a net is slower in integers.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import compiler
from benchmarks._models import cache_folder
from benchmarks.catalog import CATALOG, CatalogModel, inputs_for
from compiler.compression.quantization.affine import decibels, noise_ratio
from compiler.profiling.timing import run_seconds

Array = np.ndarray
_SAMPLES = 4
_NO_LIMIT = 0.99
_ROUNDS, _TURN_SECONDS = 9, 0.15
# Relative noise of the measurement.
NOISE = 0.03


@dataclass(frozen=True)
class Made:
    """Result of quantizing a network; `refused` gives the reason if there is no int8 module."""

    integer_layers: int = 0
    layers: int = 0
    decibels: float = 0.0
    refused: str = ""


@dataclass(frozen=True)
class Row:
    """One line: milliseconds of a run in each form, and float's over int8's."""

    model: str
    made: Made
    floats: float
    integers: float
    ratio: float


def main() -> int:
    """Parse the arguments, build missing modules, time, print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.never_slower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", help="of the catalog; all when none is given")
    parser.add_argument("--modules", type=Path, default=cache_folder() / "never-slower", help="where modules are kept")
    parser.add_argument("--make", action="store_true", help="make modules, time nothing")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    unknown = sorted(set(options.models) - set(CATALOG))
    if unknown:
        parser.error(f"no model {', '.join(unknown)}: there are {', '.join(CATALOG)}")
    options.modules.mkdir(parents=True, exist_ok=True)
    console = Console()
    rows = []
    for name in options.models or CATALOG:
        made = kept(CATALOG[name], options.modules)
        console.print(f"[dim]{name}: {made.refused or f'{made.integer_layers} of {made.layers} layers in integers'}")
        if not (options.make or made.refused):
            rows.append(timed(CATALOG[name], made, options.modules))
    if options.make:
        return 0
    console.print(_table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return int(any(row.ratio < 1 - NOISE for row in rows))


def kept(model: CatalogModel, folder: Path) -> Made:
    """Return the results for a network from the folder; quantize it if they are missing."""
    path = folder / f"{model.name}.json"
    if not path.exists():
        path.write_text(json.dumps(asdict(_make(model, folder))))
    return Made(**json.loads(path.read_text()))


def _make(model: CatalogModel, folder: Path) -> Made:
    """Quantize a net, export it in both forms."""
    source, samples = model.load(), [inputs_for(model, seed) for seed in range(_SAMPLES)]
    arguments: dict[str, Any] = {**_options(model, samples[0]), "threads": 1}
    try:
        quantized = compiler.quantize(source, samples, max_drop=_NO_LIMIT, **arguments)
    except compiler.errors.TensorwrightError as error:
        return Made(refused=error.message)
    forms = {"float": compiler.compile(source, **arguments), "int8": compiler.compile(quantized, threads=1)}
    for form, module in forms.items():
        module.export(folder / f"{model.name}-{form}.twm")
    outputs = [module.run(inputs_for(model, _SAMPLES)) for module in forms.values()]
    report = quantized.report
    return Made(len(report.layers) - len(report.in_float), len(report.layers), _signal_to_noise(*outputs))


def _options(model: CatalogModel, sample: Mapping[str, Array]) -> dict[str, Any]:
    """Return arguments for importing it at the sizes of the sample."""
    if model.reference != "torch":
        return {"shapes": {name: value.shape for name, value in sample.items()}, "constants": model.constants}
    import torch

    return {"example_inputs": tuple(torch.from_numpy(value) for value in sample.values())}


def _signal_to_noise(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> float:
    """Return the signal-to-noise ratio of all float outputs together, in decibels."""
    totals = np.zeros(2)
    for name, value in expected.items():
        if value.dtype.kind == "f":
            totals += noise_ratio(actual[name], value)
    return decibels(float(totals[0]), float(totals[1]))


def timed(model: CatalogModel, made: Made, folder: Path) -> Row:
    """Time both forms alternately."""
    inputs = inputs_for(model)
    runs = []
    for form in ("float", "int8"):
        module = compiler.load(folder / f"{model.name}-{form}.twm", threads=1)
        names = {each.name for each in module.inputs}
        runs.append(partial(module.run, {name: value for name, value in inputs.items() if name in names}))
    pairs = np.array([[run_seconds(run, budget=_TURN_SECONDS) for run in runs] for _ in range(_ROUNDS)])
    floats, integers = np.median(pairs, axis=0) * 1e3
    return Row(model.name, made, float(floats), float(integers), float(np.median(pairs[:, 0] / pairs[:, 1])))


def _table(rows: list[Row]) -> Table:
    table = Table(title="processor time of one thread; ratio: float over int8")
    table.add_column("model", no_wrap=True)
    for heading in ("layers in int8", "outputs dB", "float ms", "int8 ms", "ratio"):
        table.add_column(heading, justify="right")
    for row in sorted(rows, key=lambda row: row.ratio):
        style = "red" if row.ratio < 1 - NOISE else ""
        made = row.made
        table.add_row(
            row.model,
            f"{made.integer_layers} of {made.layers}",
            f"{made.decibels:.1f}",
            f"{row.floats:.3f}",
            f"{row.integers:.3f}",
            f"{row.ratio:.2f}",
            style=style,
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
