"""Lines that accesses reach, against those of all their addresses listed."""

from __future__ import annotations

import itertools
import random

from targets.cpu.modelled.caches import LINE, Ranges, bytes_of_lines


def _listed(accesses: list[Ranges], nbytes: int) -> int:
    lines = set[int]()
    for start, span, moved in accesses:
        for steps in itertools.product(*(range(times) for _, times in moved)):
            first = int(start + sum(step * stride for step, (stride, _) in zip(steps, moved, strict=True)))
            lines |= {at // LINE for at in range(max(first, 0), min(first + int(span), nbytes))}
    return LINE * len(lines)


def test_what_several_accesses_reach_counts_once() -> None:
    chance = random.Random(0)
    for _ in range(60):
        nbytes = LINE * chance.randint(1, 400)
        accesses = []
        for _ in range(chance.randint(1, 5)):
            strides = sorted(float(chance.choice((16, 48, 64, 200, 896, 3000))) for _ in range(chance.randint(0, 3)))
            moved = tuple((stride, chance.randint(1, 5)) for stride in strides)
            accesses.append((float(chance.randint(-2000, nbytes)), float(chance.choice((4, 16, 64, 150))), moved))
        assert bytes_of_lines(accesses, nbytes) == _listed(accesses, nbytes)
    big = ((0.0, 16.0, ((1000.0, 70000),)),)
    assert bytes_of_lines(big, 1 << 30) == 70000 * LINE
