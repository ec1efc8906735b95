"""Precisions that are estimated to be faster."""

from __future__ import annotations

import targets
from compiler.profiling.faster_precisions import KernelWork, faster_precisions, float32_work
from compiler.support.roofline import Roofline


def line(target: str, *works: KernelWork) -> str | None:
    machine = targets.get(target, cores=2).machine
    return faster_precisions(works, machine, Roofline.of(machine, measured=False))


def test_products_bound_by_their_arithmetic() -> None:
    """With tiles all precisions except slower ones of equal size; without dot products none."""
    convolution = KernelWork(1, "convolution", 10**9, 10**5)
    assert line("sapphire-rapids", convolution) == (
        "bfloat16 is estimated 9.0 times as fast here: --precision bf16; "
        "int8 is estimated 19.8 times as fast here: tensorwright quantize"
    )
    assert "float16 is estimated 9.0 times" in str(line("granite-rapids", convolution))
    assert line("znver4", convolution, KernelWork(1, "", 0, 10**5)) is not None
    assert line("x86-64-v4", convolution) is None


def test_others_stay() -> None:
    """Kernels that are bound by memory, and those whose operands are narrow already."""
    assert line("sapphire-rapids", KernelWork(1, "convolution", 10**4, 10**7), KernelWork(1, "", 10**6, 10**6)) is None
    assert line("sapphire-rapids", KernelWork(1, "", 10**9, 10**5)) is None
    assert line("znver4", KernelWork(1, "convolution", 10**9, 10**5, direct=2 * 10**9)) == (
        "int8 is estimated 2.0 times as fast here: tensorwright quantize"
    )
    assert float32_work("convolution", [("float32", 400), ("float32", 800), ("int64", 8)]) == "convolution"
    assert not float32_work("convolution", [("uint8", 400), ("int8", 800), ("int32", 8)])
    assert not float32_work("elementwise", [("float32", 400), ("float32", 800)])
