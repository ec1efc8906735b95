"""Names of the block attributes by which graph passes tell rules what a kernel computes."""

from __future__ import annotations

KIND = "tensorwright.kernel"
SPEC = "tensorwright.workload"
SERIAL_REASON = "tensorwright.serial"
"""Annotation of a serial loop: why one thread runs it, for the reports."""
RECURRENCE = "each step needs the one before it"
"""Such a reason: of recurrent layers."""
TRANSFORM = "tensorwright.transform"
"""Marks a stage whose arithmetic depends on how the rule writes it, as Winograd's transforms: it is not counted."""

UPDATES = "tensorwright.updates"
"""Attribute of a kernel: the position of the operand that its last result is, but for the parts that it writes."""

LOOP = "tensorwright.loop"
"""Attribute of a Relax function that runs up to 2^level iterations of a loop: how many tensors its state has, and
whether its last parameter is the number of iterations (1) or that is not known beforehand (0)."""
CALLS = "tensorwright.calls"
"""Attribute of a kernel: the names of the kernels that it calls."""
