"""Description of a multiply-accumulate instruction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from schedules.instructions.products.operation import Body, Operation
from schedules.machine import Machine

_TILES_OF_CONVOLUTIONS = 1.8


@dataclass(frozen=True)
class Product:
    """A multiply-accumulate instruction.

    Attributes:
        name: name of the instruction, the key of processors' `rates`.
        operation: the operation that it computes.
        needs: sets of features (LLVM's names) any of which gives a processor the instruction.
        rate: multiply-add throughput relative to float32 vectors, on processors that do not list another.
        lanes: supported numbers of 32-bit lanes.
        body: the body of its function for one of these.
        declarations: declarations of the intrinsics that the body calls.
        direct: it takes operands as stored; else they are converted to a wider type or shifted first.
        pads: fewer lanes are best computed by padding them with zeros.
        rows, depth: size of the block that one instruction multiplies by the columns of a register or tile; a depth
            of 0 is a group.
        sums: location of the accumulators; those in tiles are computed by `amx.block_sums`, not lane by lane.
    """

    name: str
    operation: Operation
    needs: tuple[frozenset[str], ...]
    rate: float
    lanes: tuple[int, ...] = ()
    body: Body = field(default=lambda lanes: "")
    declarations: Callable[[int], list[str]] = field(default=lambda lanes: [])
    direct: bool = True
    pads: bool = False
    rows: int = 1
    depth: int = 0
    sums: Literal["vectors", "tiles"] = "vectors"

    @property
    def group(self) -> int:
        """Number of neighbours along the depth that share a word; it determines the packing of weights."""
        return self.operation.group

    def rate_on(self, machine: Machine) -> float:
        """Multiply-add throughput relative to float32 on a processor."""
        return dict(machine.rates).get(self.name, self.rate)

    def convolution_rate_on(self, machine: Machine) -> float:
        """The same for convolutions: tile kernels read an input plane from the L1 cache, where matmuls read their
        operands from L2 (1,860 to 2,560 G operations/s against 1,120)."""
        return self.rate_on(machine) * (_TILES_OF_CONVOLUTIONS if self.sums == "tiles" else 1.0)


def features(*names: str) -> frozenset[str]:
    """A set of features for `Product.needs`."""
    return frozenset(names)
