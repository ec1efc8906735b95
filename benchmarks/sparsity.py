"""The sparsity from which sparse kernels are faster than dense ones, and the compiler's choice.

    python -m benchmarks.sparsity
    python -m benchmarks.sparsity products --patterns blocks
    python -m benchmarks.sparsity convolutions --shares 0 0.5 0.9

A row is a layer with random weights and inputs; times are medians of processor time of one thread. "blocks" are as wide
as the machine's vectors. "speed" is dense over sparse time, both forced; "chosen" is the choice of `compile`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from torch import nn

import compiler
import targets
from compiler.compression.pruning.plan import masks, parse_pattern
from compiler.profiling.timing import run_seconds
from schedules.matmul.sparse import Groups, SparseForm, max_kept, sparse_form

Array = np.ndarray
# (rows, depth, columns)
PRODUCTS = ((1, 4096, 4096), (1, 384, 1536), (8, 768, 768), (128, 384, 1536), (196, 512, 512))
# (channels, filters, kernel, stride, size)
CONVOLUTIONS = (
    (256, 64, 1, 1, 56),
    (1024, 256, 1, 1, 14),
    (512, 2048, 1, 1, 7),
    (64, 64, 3, 1, 56),
    (512, 512, 3, 1, 7),
)
N_OF_M = ("2:4", "1:4", "4:8", "2:8", "4:16", "2:16")
_WIDTHS = (34, 18, 11, 11, 8, 8)  # widths of the table's columns
_SPARSE = ("matmul-sparse", "matmul-n-of-m", "conv-sparse")


@dataclass(frozen=True)
class Layer:
    """A layer, an input, and its weight as a (results, operands) view."""

    name: str
    net: nn.Module
    example: torch.Tensor
    rows: int | None


def main() -> int:
    """Parse the arguments, measure, and print each row at once."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparsity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=["products", "convolutions"], help="products, convolutions")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
    parser.add_argument("--patterns", nargs="*", default=["blocks", *N_OF_M], help="blocks, or N:M (products)")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each time")
    options = parser.parse_args()
    console = Console(width=120, highlight=False)
    console.print("one thread, processor time", style="dim")
    console.print(_line(("layer", "zeros", "dense ms", "sparse ms", "speed", "chosen")), style="bold")
    layers = [*(_products() if "products" in options.kinds else [])]
    layers += _convolutions() if "convolutions" in options.kinds else []
    for layer in layers:
        for row in _rows(layer, options):
            console.print(_line(row))
    return 0


def _line(cells: Sequence[str]) -> str:
    """Print a row of the table immediately."""
    return "".join(f"{cell:<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _products() -> list[Layer]:
    return [
        Layer(f"{rows}x{depth} by {columns}", nn.Linear(depth, columns, bias=False), torch.randn(rows, depth), rows)
        for rows, depth, columns in PRODUCTS
    ]


def _convolutions() -> list[Layer]:
    return [
        Layer(
            f"{channels} to {filters}, {kernel}x{kernel}, {size}x{size}",
            nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False),
            torch.randn(1, channels, size, size),
            None,
        )
        for channels, filters, kernel, stride, size in CONVOLUTIONS
    ]


def _rows(layer: Layer, options: argparse.Namespace) -> Iterator[list[str]]:
    whole = next(layer.net.parameters()).detach().clone()
    inputs = {"input": layer.example.numpy()}

    def timed(force: bool) -> float:
        with _forced(force):
            module = _compiled(layer)
        used = any(kernel.rule in _SPARSE for kernel in module.manifest.kernels)
        if used is not force:
            return float("nan")
        name = module.inputs[0].name
        return run_seconds(lambda: module.run({name: inputs["input"]}), budget=options.seconds)

    dense = timed(False)
    for pattern, share in _patterns(layer, options):
        with torch.no_grad():
            next(layer.net.parameters()).copy_(_pruned(whole, pattern, share))
        sparse = timed(True)
        chosen = "sparse" if any(kernel.rule in _SPARSE for kernel in _compiled(layer).manifest.kernels) else "dense"
        zeros = f"{share:.0%} in {pattern}" if pattern == "blocks" else pattern
        yield [layer.name, zeros, f"{dense * 1e3:.3f}", f"{sparse * 1e3:.3f}", f"{dense / sparse:.2f}", chosen]


def _patterns(layer: Layer, options: argparse.Namespace) -> list[tuple[str, float]]:
    blocks = [("blocks", share) for share in options.shares] if "blocks" in options.patterns else []
    groups = [each for each in options.patterns if each != "blocks"] if layer.rows is not None else []
    return [*blocks, *((each, 0.0) for each in groups)]


def _pruned(dense: torch.Tensor, pattern: str, share: float) -> torch.Tensor:
    """Set the smallest elements of the weight to zero."""
    if pattern == "blocks" and not share:
        return dense
    lanes = targets.get("host").machine.lanes("float32")
    kind = parse_pattern(f"{lanes}x1" if pattern == "blocks" else pattern)
    flat: Array = dense.numpy().reshape(len(dense), dense.shape[1], -1).swapaxes(1, 2)
    matrix = flat.reshape(len(dense), -1)
    kept = masks(kind, [matrix.astype(np.float64) ** 2], share or 1.0, "layer")[0]
    cut = np.where(kept, matrix, np.float32(0)).reshape(flat.shape).swapaxes(1, 2)
    return torch.from_numpy(np.ascontiguousarray(cut.reshape(dense.shape)))


def _compiled(layer: Layer) -> Any:
    return compiler.compile(layer.net.eval(), example_inputs=(layer.example,), threads=1, records=False)


@contextmanager
def _forced(sparse: bool) -> Iterator[None]:
    """Force the compiler to use sparse kernels, or none, whatever their cost."""

    def form(weight: Array, rows: int, machine: Any) -> SparseForm | None:
        if not sparse:
            return None
        groups = _groups(weight)
        return sparse_form(weight, rows, machine) or SparseForm(machine.lanes("float32"), groups)

    with (
        mock.patch("compiler.passes.layout.pack_weights.sparse_form", form),
        mock.patch("schedules.conv.choose.conv_pays", return_value=sparse),
    ):
        yield


def _groups(weight: Array) -> Groups | None:
    """Return the N:M pattern of a weight pruned that way."""
    for of in (4, 8, 16):
        if len(weight) % of == 0 and (keep := max_kept(weight, of)) <= of // 2:
            return Groups(keep, of)
    return None


if __name__ == "__main__":
    sys.exit(main())
