"""Number of elements of its tensors that a kernel reads and writes."""

from __future__ import annotations

from collections.abc import Mapping

Shape = tuple[int, ...]


def elements_read(tensors: Mapping[int, Shape], gathered: frozenset[int], position: int) -> int:
    """Elements of the tensor at a position that a call reads or writes; the last tensor is its result.

    Args:
        gathered: positions of tensors that the kernel only gathers from: it reads as many of their elements as it
            writes, not the whole tensor.
    """
    count = _elements(tensors[position])
    return min(count, _elements(tensors[max(tensors)])) if position in gathered else count


def _elements(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
