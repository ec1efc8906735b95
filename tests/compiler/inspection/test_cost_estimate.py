"""What estimates say of other precisions."""

from __future__ import annotations

import targets
from compiler.inspection.cost_estimate import KernelCost, faster_precisions
from compiler.inspection.roofline import Roofline


def cost(kind: str, operations: int, nbytes: int, roofline: Roofline) -> KernelCost:
    return KernelCost("k", (), kind, 1, operations, nbytes, roofline.seconds(operations, nbytes), 1.0, ())


def line(target: str, *sizes: tuple[str, int, int]) -> str | None:
    machine = targets.get(target, cores=2).machine
    roofline = Roofline.of(machine, measured=False)
    return faster_precisions([cost(*each, roofline) for each in sizes], machine, roofline)


def test_products_bound_by_their_arithmetic() -> None:
    """On processors with tiles both precisions; without dot products none."""
    convolution = ("convolution", 10**9, 10**5)
    assert line("sapphire-rapids", convolution) == (
        "bfloat16 is estimated 5.0 times as fast here: --precision bf16; "
        "int8 is estimated 11.0 times as fast here: tensorwright quantize"
    )
    assert line("znver4", convolution, ("elementwise", 0, 10**5)) is not None
    assert line("x86-64-v4", convolution) is None


def test_what_moves_bytes_stays() -> None:
    assert line("sapphire-rapids", ("convolution", 10**4, 10**7), ("elementwise", 10**6, 10**6)) is None
