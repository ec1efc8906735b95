"""A fictitious accelerator that multiplies float32 matrices in tiles of 8 x 8, attached to a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import targets
from matrix_engine.partition import claim_products
from matrix_engine.simulator import register


class MatrixEngine(targets.AcceleratedTarget):
    """This machine's CPU with the matrix engine attached; the CPU runs what the engine does not support."""

    name = "matrix-engine"
    description = "a made-up engine of 8 x 8 matrix tiles beside this processor"
    device = "matrix engine"

    def __init__(self) -> None:
        super().__init__(targets.get("host"))

    def partition_passes(self) -> Sequence[Any]:
        return (claim_products,)

    def load_runtime(self) -> None:
        register()

    def how_it_runs(self) -> str:
        return "in its functional simulator"
