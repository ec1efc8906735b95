"""Layers in float32 and int8: predicted times, by which `compiler.quantize` decides by default, against measured ones.

    python -m benchmarks.layer_times resnet18 mobilenet_v2      # nets of the catalog; all of it when none is given
    python -m benchmarks.layer_times --target x86-64-v3 resnet18

Prints each layer for which the two disagree on the faster form, the cost of the wrong choice, and the errors of
predictions (up to one common clock rate). Use an idle machine, or trust only large differences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import targets
from benchmarks.catalog import CATALOG, CatalogModel
from compiler.compression.model import canonical
from compiler.compression.predicted_times import KernelClock, PredictedClock
from compiler.compression.quantization.affine import quantize_weight
from compiler.compression.quantization.calibration import scheme_for
from compiler.compression.quantization.layer_times import LayerTime, LayerTimes
from compiler.compression.quantization.layers import find_layers
from compiler.compression.quantization.speed import MeasuredClock
from compiler.driver.compile import compile as compile_model
from compiler.frontends.source import import_model
from compiler.passes.rewriting.matching import static_shape

_MIN_SECONDS = 1e-6  # below this, the overhead of the measurement dominates


@dataclass(frozen=True)
class Row:
    """A layer."""

    model: str
    layer: str
    size: str
    predicted: LayerTime
    measured: LayerTime

    @property
    def is_known(self) -> bool:
        return min(self.measured.floats, self.measured.integers) > _MIN_SECONDS

    @property
    def is_wrong(self) -> bool:
        gains = [time.floats > time.integers for time in (self.predicted, self.measured)]
        return gains[0] != gains[1]

    @property
    def cost(self) -> float:
        """Seconds lost by the wrong choice."""
        return abs(self.measured.floats - self.measured.integers)


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layer_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", help="of the catalog")
    parser.add_argument("--target", default="host", help="an x86-64 target that this machine runs")
    options = parser.parse_args()
    target = targets.get(options.target, cores=1)
    console = Console(width=150)
    rows: list[Row] = []
    for name in options.models or CATALOG:
        rows += rows_of(CATALOG[name], target)
        console.print(f"[dim]{name}: {len(rows)} layers so far")
    print_rows([row for row in rows if row.is_known], console)


def rows_of(model: CatalogModel, target: targets.Target) -> Iterable[Row]:
    """Return the layers of a net, equal ones once."""
    scheme = scheme_for(target)
    graph = find_layers(canonical(_imported(model), target).mod, scheme.operators)

    def times(clock: KernelClock) -> dict[str, LayerTime]:
        return LayerTimes(clock, scheme.activations).measure(
            graph.layers, lambda layer: quantize_weight(layer.weight, layer.operator.filters, per_channel=True)
        )

    predicted = times(PredictedClock(target))
    measured = times(MeasuredClock(lambda mod: compile_model(mod, target, threads=1)))
    seen = set()
    for layer in graph.layers:
        if layer.name in measured and measured[layer.name] not in seen:
            seen.add(measured[layer.name])
            size = f"{static_shape(layer.data)} {layer.weight.shape}"
            yield Row(model.name, layer.name, size, predicted[layer.name], measured[layer.name])


def _imported(model: CatalogModel) -> Any:
    import torch

    sizes = model.sizes[-1] if model.sizes else {}
    source = model.load()
    if isinstance(source, torch.nn.Module):
        arrays = model.inputs(np.random.default_rng(0), sizes).values()
        return import_model(source, example_inputs=tuple(torch.from_numpy(np.asarray(array)) for array in arrays))
    shapes = {
        name: tuple(sizes.get(size, 1) if isinstance(size, str) else size for size in shape)
        for name, shape in (model.shapes or {}).items()
    }
    return import_model(source, shapes=shapes or None, constants=model.constants)


def print_rows(rows: list[Row], console: Console) -> None:
    """Print the wrong choices, and a summary."""
    pairs = [(row.predicted, row.measured) for row in rows]
    ratios = np.array([[one.floats / other.floats, one.integers / other.integers] for one, other in pairs])
    errors = np.abs(np.log(ratios / np.median(ratios)))
    table = Table("model", "layer", "data, weights", "predicted us", "measured us", "spread", "cost us")
    wrong = [row for row in rows if row.is_wrong]
    for row in sorted(wrong, key=lambda row: -row.cost):
        times = [f"{time.floats * 1e6:.1f} {time.integers * 1e6:.1f}" for time in (row.predicted, row.measured)]
        table.add_row(row.model, row.layer, row.size, *times, f"{row.measured.spread:.0%}", f"{row.cost * 1e6:.1f}")
    console.print(table)
    whole = sum(min(row.measured.floats, row.measured.integers) for row in rows)
    cost = sum(row.cost for row in wrong) / whole
    console.print(f"{len(wrong)} of {len(rows)} choices differ, at a cost of {cost:.2%} of all layers' time")
    console.print(f"errors of predictions: median {np.median(errors):.1%}, 90 % below {np.quantile(errors, 0.9):.1%}")


if __name__ == "__main__":
    main()
