"""The report's notes on zeros of a pruned model: whether its kernels skip them."""

from __future__ import annotations

import targets
from compiler.compression.report import Measure
from compiler.passes.layout.pack_sparse_weights import pack_sparse_weights
from schedules.conv.sparse import CONV_SPARSE
from schedules.instructions.select_lanes import choices_of
from schedules.matmul.n_of_m import MATMUL_N_OF_M
from schedules.matmul.sparse import MATMUL_SPARSE
from schedules.matmul.sparse_cost import share_that_pays


def note_on_zeros(after: Measure, target: targets.Target) -> str:
    """Note on which kernels skip zeros, and from what share of zeros on they would."""
    if not pack_sparse_weights.serves(target.pipeline):
        return "this target's kernels read and multiply zeros like other weights: no faster"
    machine = target.machine
    skipping = sum(after.kernels.get(rule, 0) for rule in (CONV_SPARSE, MATMUL_SPARSE, MATMUL_N_OF_M))
    lanes = machine.lanes("float32")
    share = share_that_pays(machine, 0)
    served = f"{skipping} kernels skip zeros" if skipping else "no kernel skips zeros"
    groups = ", in N of 4 where N is 1 or there are few rows" if choices_of(machine) else ""
    return (
        f"{served}; dense ones, no faster for zeros, serve all other weights: on this machine zeros pay in blocks of"
        f" {lanes}x1 from {share:.0%} on{groups}, and in 3x3 convolutions by Winograd's method from much more on"
    )
