"""Names of the block attributes by which graph passes tell rules what a kernel computes."""

from __future__ import annotations

KIND = "tensorwright.kernel"
SPEC = "tensorwright.workload"
SERIAL_REASON = "tensorwright.serial"
"""Annotation of a serial loop: why one thread runs it, for the reports."""
RECURRENCE = "each step needs the one before it"
"""Such a reason, for recurrent layers."""
TRANSFORM = "tensorwright.transform"
"""Marks a stage whose arithmetic depends on how the rule writes it (Winograd's transforms): not counted."""

UPDATES = "tensorwright.updates"
"""Kernel attribute: index of the operand that the last result aliases; the kernel overwrites only parts of it."""

LOOP = "tensorwright.loop"
"""Attribute of a Relax function that runs up to 2^level iterations of a loop: the number of state tensors, and whether
its last parameter is the number of iterations (1) or the count is not known beforehand (0)."""
ELEMENTWISE, FUSABLE, OPAQUE = 0, 4, 8
"""Relax's pattern kinds, attribute "op_pattern" of a kernel: fuses with its producer; elementwise consumers are fused
into it ("out elementwise fusable"); fuses with nothing."""
CALLS = "tensorwright.calls"
"""Attribute of a kernel: the names of the kernels that it calls."""
