"""Names of the block attributes by which graph passes tell rules what a kernel computes."""

from __future__ import annotations

KIND = "tensorwright.kernel"
SPEC = "tensorwright.workload"
