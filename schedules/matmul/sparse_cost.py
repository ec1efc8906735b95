"""Chooses between sparse and dense matmul kernels, from the machine and the positions of the zeros.

Dense and sparse kernels do the same for each number that is left, so the share that is left decides, times what a
number costs more in a sparse kernel. `python -m benchmarks.sparsity` measures both and prints where they meet.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from schedules.instructions.select_lanes import choices_of
from schedules.machine import Machine
from schedules.matmul.n_of_m import Groups, most_kept
from schedules.matmul.sparse import in_panels, share_kept
from schedules.matmul.tiling import MatmulWorkload, best_tile, panel_width, tile_cost

# All measured on Zen 4 with AVX-512. A block in a sparse product over one in a dense product, without any zeros: its
# row is looked up, and a tile one vector wide loads a number of the data for each multiply-add.
_LOOKED_UP = 1.28
# A number of N in M over one in a dense product: a permutation beside the multiply-add, half as many of which start.
_PERMUTED = 2.5
# Bytes of weights that a core reads in a cycle from its second cache or the shared one.
_WEIGHTS_RATE = 26.0
_MANY_ROWS = 960


@dataclass(frozen=True)
class SparseForm:
    """Sparse format of a weight: without its zero blocks of `width` columns, or N:M sparse as described by `groups`."""

    width: int
    groups: Groups | None = None


def sparse_form(weight: np.ndarray, rows: int, machine: Machine) -> SparseForm | None:
    """The fastest sparse format for a matmul of `rows` rows (0: any number) and a (depth, columns) weight; None if the
    dense kernel is faster."""
    columns = weight.shape[1]
    lanes = machine.lanes("float32")
    dense = dense_cycles(rows, columns, machine)
    forms: list[tuple[float, SparseForm]] = []
    for width in (lanes, 2 * lanes, 4 * lanes):
        if width <= columns and width <= _widest(machine):
            kept = share_kept(in_panels(weight, width))
            forms.append((block_cycles(kept, rows, columns, width, machine), SparseForm(width)))
    for of in choices_of(machine):
        if len(weight) % of == 0 and 0 < (keep := most_kept(weight, of)) <= of // 2:
            form = SparseForm(lanes, Groups(keep, of))
            forms.append((group_cycles(form.groups, rows, columns, machine), form))  # type: ignore[arg-type]
    cycles, best = min(forms, key=lambda each: each[0])
    return best if cycles < dense else None


def _widest(machine: Machine) -> int:
    """Columns of the widest block: the maximum tile width of dense matmuls."""
    return machine.lanes("float32") * (2 if machine.vector_bits >= 512 or machine.vector_registers < 32 else 4)


def dense_cycles(rows: int, columns: int, machine: Machine) -> float:
    """Cycles per step along the depth of a dense matmul."""
    width = panel_width(columns, machine)
    work = MatmulWorkload(1, rows, columns, 0, "panels", width, "float32", "float32", 0)
    lanes = machine.lanes("float32")
    arithmetic = tile_cost(rows or _MANY_ROWS, columns, best_tile(work, machine), machine, lanes)
    return max(arithmetic, columns * 4 / _WEIGHTS_RATE)


def block_cycles(kept: float, rows: int, columns: int, width: int, machine: Machine) -> float:
    """Cycles per step along the depth of a block-sparse matmul that keeps this fraction of its blocks."""
    return kept * _LOOKED_UP * max(_sums(rows, columns, width, machine), dense_cycles(rows, columns, machine))


def group_cycles(groups: Groups, rows: int, columns: int, machine: Machine) -> float:
    """Cycles per step along the depth of an N:M sparse matmul."""
    arithmetic = _PERMUTED * _sums(rows, columns, machine.lanes("float32"), machine)
    word = 4 / groups.per_word / groups.keep
    return groups.keep / groups.of * max(arithmetic, columns * (4 + word) / _WEIGHTS_RATE)


def _sums(rows: int, columns: int, width: int, machine: Machine) -> float:
    """Cycles of a depth step's multiply-adds or loads; accumulators alternate, so latency is hidden."""
    rows = rows or _MANY_ROWS
    vectors = -(-columns // machine.lanes("float32"))
    loads = rows / (width / machine.lanes("float32")) + 1
    return vectors * max(rows / machine.fma_ports, loads / 2)


def share_that_pays(machine: Machine, rows: int) -> float:
    """The fraction of zero blocks, one vector wide, above which skipping them pays in a matmul of `rows` rows (0:
    many)."""
    columns = 64 * machine.lanes("float32")
    whole = block_cycles(1.0, rows, columns, machine.lanes("float32"), machine)
    return float(np.clip(1 - dense_cycles(rows, columns, machine) / whole, 0, 1))
