"""Precisions in which a float32 model is estimated to be much faster on a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compiler.support.roofline import Roofline
from schedules.gpu.machine import GpuMachine
from schedules.instructions.dot_products.table import dot_instructions
from schedules.machine import Machine

_WORTH_SAYING = 1.3
_PRECISIONS = (
    # Name, option, types of the operands, and their bytes relative to float32.
    ("bfloat16", "--precision bf16", ("bfloat16", "bfloat16"), 0.5),
    ("float16", "--precision float16", ("float16", "float16"), 0.5),
    ("int8", "tensorwright quantize", ("uint8", "int8"), 0.25),
)


@dataclass(frozen=True)
class KernelWork:
    """The calls of one kernel.

    Attributes:
        float32: "convolution" or "matmul" of float32 operands; "" for other work.
        operations, nbytes: per call.
        direct: for a convolution by Winograd's method, the number of operations without it.
    """

    calls: int
    float32: str
    operations: int
    nbytes: int
    direct: int = 0


def faster_precisions(works: Sequence[KernelWork], machine: Machine, roofline: Roofline) -> str | None:
    """The precisions and how much faster each is estimated to be, as a line of text; None if none is.

    Matmuls and convolutions bound by arithmetic run at the rate of the machine's instruction, and move fewer bytes; the
    other kernels are unchanged.
    """
    if isinstance(machine, GpuMachine):
        return None
    total = sum(each.calls * roofline.seconds(each.operations, each.nbytes) for each in works)
    notes: list[str] = []
    best: dict[float, float] = {}  # by bytes: a slower precision of the same size is not reported
    for name, how, operands, share in _PRECISIONS:
        instructions = dot_instructions(machine, *operands)
        if not instructions:
            continue
        rates = {
            "matmul": max(each.rate_on(machine) for each in instructions),
            "convolution": max(each.convolution_rate_on(machine) for each in instructions),
        }
        saved = 0.0
        for work in works:
            seconds = roofline.seconds(work.operations, work.nbytes)
            if work.float32 and seconds > roofline.seconds(0, work.nbytes):
                operations = max(work.operations, work.direct) / rates[work.float32]
                narrow = roofline.seconds(int(operations), int(work.nbytes * share))
                saved += work.calls * max(seconds - narrow, 0.0)
        gain = total / (total - saved) if total > 0 else 0.0
        if gain >= max(_WORTH_SAYING, best.get(share, 0.0)):
            best[share] = gain
            notes.append(f"{name} is estimated {gain:.1f} times as fast here: {how}")
    return "; ".join(notes) or None


def float32_work(kind: str, tensors: Sequence[tuple[str, int]]) -> str:
    """`KernelWork.float32` of a kernel of a kind of work, given the types and bytes of its tensors."""
    largest = sorted(tensors, key=lambda each: -each[1])[:2]
    return kind if kind in ("convolution", "matmul") and all(dtype == "float32" for dtype, _ in largest) else ""
