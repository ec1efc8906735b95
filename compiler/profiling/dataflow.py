"""Dataflow of a recorded run: what each call reads of earlier calls, and the bytes of tensors that are alive meanwhile.

Kernels write their last arguments. A tensor is its address from one write there to the next: addresses of memory that
tensors share by the plan are told apart by time, and views and tensors written in place are those that they are over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from compiler.profiling.instrument import Call

ALIGNMENT = 64
"""Bytes that tensors in memory are rounded up to, as in the memory plan of the manifest."""
IN_PLACE = "_in_place"
"""The end of the names of kernels that update their last argument, which they read too (`kernels_in_place.py`)."""


@dataclass(frozen=True)
class Dataflow:
    """Dataflow between the calls of a run.

    Attributes:
        reads: for each call, the earlier calls whose results it reads, without duplicates, in order.
        live: of each call, the bytes of tensors that are written before it ends and read in it or later, results of the
            run included; parameters, inputs, and memory inside of kernels are not.
    """

    reads: tuple[tuple[int, ...], ...]
    live: tuple[int, ...]


@dataclass
class _Tensor:
    writer: int
    end: int  # the last call that it is alive in
    nbytes: int


def dataflow(calls: Sequence[Call], outputs: Sequence[int]) -> Dataflow:
    """Find what flows between calls.

    Args:
        outputs: how many of its tensors, the last ones, each call writes; 0 for calls of the runtime.
    """
    current: dict[int, _Tensor] = {}  # by address
    every: list[_Tensor] = []
    reads: list[tuple[int, ...]] = []
    for index, (call, count) in enumerate(zip(calls, outputs, strict=True)):
        tensors = [each for each in call.arguments.values() if each.nbytes]
        first = max(0, len(tensors) - count)
        read = tensors if call.name.endswith(IN_PLACE) else tensors[:first]
        found = [current[each.address] for each in read if each.address in current]
        for tensor in found:
            tensor.end = index
        reads.append(tuple(sorted({tensor.writer for tensor in found})) if count else ())
        for argument in tensors[first:]:
            replaced = current.get(argument.address)
            if replaced is not None and replaced.end == index:
                replaced.end -= 1  # in place: it is the new tensor from here on
            current[argument.address] = _Tensor(index, index, -(-argument.nbytes // ALIGNMENT) * ALIGNMENT)
            every.append(current[argument.address])
    changes = [0] * (len(calls) + 1)
    for tensor in every:
        changes[tensor.writer] += tensor.nbytes
        changes[tensor.end + 1] -= tensor.nbytes
    return Dataflow(tuple(reads), tuple(accumulate(changes[:-1])))
