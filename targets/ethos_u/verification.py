"""Verifies Vela's output against the graph: the simulator against the TOSA reference model.

Vela 5.2 is known to emit wrong commands silently. Segments with differences are refused and run on the processor
instead.
"""

from __future__ import annotations

import numpy as np

from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.program import Program
from targets.ethos_u.runtime import execute, run_graph
from targets.ethos_u.segments import Segment, one_segment
from targets.ethos_u.settings import VelaOptions
from targets.ethos_u.steps import Step
from targets.ethos_u.vela import compile_graph

REASON = "together with the operators before it, Vela's commands compute other results than its graph"


def agrees(part: Segment, program: Program) -> bool:
    """True if a program reproduces the reference model's output bit by bit, for random inputs."""
    rng = np.random.default_rng(0)
    operands = [rng.integers(-128, 128, port.shape).astype(np.int8) for port in part.inputs]
    expected = run_graph(part.tosa, operands)
    return expected is not None and all(
        np.array_equal(actual, each) for actual, each in zip(execute(program, operands), expected, strict=True)
    )


def first_wrong(part: Segment, accelerator: Accelerator, options: VelaOptions) -> Step:
    """The first step from which on a segment's results are wrong."""
    right, wrong = 0, len(part.steps)
    while wrong - right > 1:
        middle = (right + wrong) // 2
        front = one_segment(part.steps[:middle])
        if agrees(front, compile_graph(front.tosa, accelerator, options).program):
            right = middle
        else:
            wrong = middle
    return part.steps[wrong - 1]
