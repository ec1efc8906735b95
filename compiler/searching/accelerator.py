"""What a whole network takes on an accelerator, by the accelerator's own compiler."""

from __future__ import annotations

import targets
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.cost import Accelerator, Costs
from compiler.tuning.networks import network_cost

_CHANNELS = 8  # of outputs that an Ethos-U computes at once


class CountedCycles:
    """Cycles and memory of a quantized network by Vela, the Ethos-U's compiler: the same on every run."""

    def __init__(self, target: targets.Target) -> None:
        self._target = target

    def costs(self, model: ImportedModel) -> Costs:
        """Cycles of the accelerator and the processor, and SRAM at the peak.

        Raises:
            OptionError: Vela is missing, or the accelerator runs nothing of the network.
        """
        found = network_cost(model, self._target)
        return {"cycles": float(found.cost), "sram_kb": float(found.memory or 0) / 1024}


def accelerator_of(target: targets.Target) -> Accelerator | None:
    """What counts the target's cycles; None for processors."""
    return CountedCycles(target) if target.quantized_everywhere else None


def channels_at_once(target: targets.Target) -> int:
    """How many channels a target computes at once: sub-nets keep multiples of them."""
    return _CHANNELS if target.quantized_everywhere else target.machine.lanes("float32")
