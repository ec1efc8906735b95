"""Long sums of float32 in parts: each is summed from zero, then added to the total.

The error of a sum of n terms, one after another, is at most (n - 1) u sum(|terms|), u = 2^-24. In parts of b terms it
is at most (b + n / b) u sum(|terms|) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section
4.2), which b = sqrt(n) makes least; longer parts cost less time. Errors of terms of random signs grow with the roots.
"""

from __future__ import annotations

from collections.abc import Callable

from schedules.codegen.nest import split_repeat
from schedules.ir.numbers import ceil_div
from schedules.ir.tir import Index, Stmt

PART = 256
"""Terms of a part of a matrix product or a direct convolution. Adding a register tile to its totals takes as long as
one to two terms."""


def steps_of_part(steps: int, terms: int, wanted: int = PART) -> int:
    """Number of the `steps` steps, of `terms` terms each, that are summed at a time.

    All of them where that is no more than half as many again as wanted; else a divisor of the steps where one comes
    near, as steps left over need code of their own.
    """
    if 2 * steps * terms <= 3 * wanted:
        return steps
    best = max(1, wanted // terms)
    near = [each for each in range(ceil_div(best, 2), 2 * best + 1) if steps % each == 0]
    return min(near, key=lambda each: abs(each - best)) if near else best


def in_parts(steps: int, part: int, body: Callable[[Index, int], Stmt]) -> Stmt:
    """`body(first step, number of steps)` for each part."""
    return split_repeat("sums_of", steps, part, body)
