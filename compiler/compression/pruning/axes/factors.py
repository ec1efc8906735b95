"""Which axes of a shape become which of another: groups of equal products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def factor_groups(before: Sequence[object], after: Sequence[object]) -> list[tuple[list[int], list[int]]]:
    """(indices of `before`, indices of `after`) of the smallest groups whose sizes multiply to the same number.

    Symbolic sizes are equal when they are written alike. What cannot be told apart is one group.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        given, made = [i], [j]
        i, j = i + 1, j + 1
        while (side := _smaller([before[k] for k in given], [after[k] for k in made])) is not None:
            if side == 0 and i < len(before):
                given.append(i)
                i += 1
            elif side == 1 and j < len(after):
                made.append(j)
                j += 1
            else:  # no way to balance them
                given += range(i, len(before))
                made += range(j, len(after))
                i, j = len(before), len(after)
                break
        groups.append((given, made))
    if i < len(before) or j < len(after):  # sizes of 1
        groups.append((list(range(i, len(before))), list(range(j, len(after)))))
    return groups


def _smaller(left: Sequence[object], right: Sequence[object]) -> int | None:
    """0 when the left product lacks a factor, 1 when the right one does, None when they are equal."""
    symbols = [Counter(str(size) for size in sizes if not isinstance(size, int)) for sizes in (left, right)]
    if symbols[1] - symbols[0]:
        return 0
    if symbols[0] - symbols[1]:
        return 1
    numbers = [_product(left), _product(right)]
    if numbers[0] == numbers[1]:
        return None
    return 0 if numbers[0] < numbers[1] else 1


def _product(sizes: Sequence[object]) -> int:
    result = 1
    for size in sizes:
        if isinstance(size, int):
            result *= size
    return result
