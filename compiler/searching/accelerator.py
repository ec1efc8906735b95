"""What a whole network takes on an accelerator, by the accelerator's own compiler."""

from __future__ import annotations

import targets
from compiler.searching.cost import Accelerator


def accelerator_of(target: targets.Target) -> Accelerator | None:
    """What counts the target's cycles; None for processors."""
    return None
