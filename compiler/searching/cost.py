"""Cost of a candidate: time from the table of layers, sizes from the planner, cycles from the accelerator's
compiler."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import targets
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.layer_table import LayerTable, pipeline_of
from compiler.tuning.networks import network_cost

Costs = dict[str, float]
_SIZES = frozenset({"mb", "peak_mb"})
_CYCLES = frozenset({"cycles", "sram_kb"})


class Accelerator(Protocol):
    """Counts what a whole network takes on an accelerator."""

    def costs(self, model: ImportedModel) -> Costs:
        """ "cycles", "sram_kb", and "ms" at the accelerator's clock."""


class CostModel:
    """Costs by the names of a budget.

    Args:
        wanted: the names to compute.
        table: of kernels; None where an accelerator runs the whole network.
        accelerator: None for a processor.

    Raises:
        OptionError: the target has no such cost.
    """

    def __init__(
        self,
        target: targets.Target,
        wanted: Collection[str],
        table: LayerTable | None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.target, self.wanted, self.table, self.accelerator = target, tuple(wanted), table, accelerator
        if _CYCLES.intersection(wanted) and accelerator is None:
            raise OptionError(
                f"target {target.name!r} is no accelerator whose compiler counts cycles",
                "limit ms, mb or peak_mb, or name an Ethos-U",
            )

    def costs(self, models: Sequence[ImportedModel]) -> list[Costs]:
        """Costs of several candidates: kernels that none of them has in common with those known are measured once."""
        found: list[Costs] = [{} for _ in models]
        if self.accelerator is not None:
            for costs, model in zip(found, models, strict=True):
                costs.update(
                    {name: cost for name, cost in self.accelerator.costs(model).items() if name in self.wanted}
                )
        elif "ms" in self.wanted:
            for costs, seconds in zip(found, self._seconds(models), strict=True):
                costs["ms"] = 1e3 * seconds
        if _SIZES.intersection(self.wanted):
            for costs, model in zip(found, models, strict=True):
                sizes = sizes_of(model, self.target)
                costs.update({name: size for name, size in sizes.items() if name in self.wanted})
        return found

    def _seconds(self, models: Sequence[ImportedModel]) -> list[float]:
        table = self.table
        assert table is not None
        lowered = [table.lowered(model) for model in models]
        table.fill(lowered)
        return [table.seconds(each) for each in lowered]

    def close(self) -> None:
        """End the processes that measure; what needs them starts them again."""
        if self.table is not None:
            self.table.close()


def sizes_of(model: ImportedModel, target: targets.Target) -> Costs:
    """ "mb" of parameters as the module's file holds them, and "peak_mb" of activations, as planned."""
    result = pipeline_of(model, target)
    plans = result.report.memory or {}
    return {
        "mb": sum(array.nbytes for array in result.stored_parameters().values()) / 1e6,
        "peak_mb": max((int(plan["peak"]) for plan in plans.values()), default=0) / 1e6,
    }


def excess(costs: Mapping[str, float], budget: Mapping[str, float]) -> float:
    """Largest share by which a cost exceeds its limit; 0 or less where all are met."""
    return max(costs[name] / limit - 1 for name, limit in budget.items())


# What a whole network takes on an accelerator, by the accelerator's own compiler.

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
    """Cycle counter of a target's accelerator; None for processors."""
    return CountedCycles(target) if target.quantized_everywhere else None


def channels_at_once(target: targets.Target) -> int:
    """Number of channels that a target computes at once: sub-nets keep multiples of them."""
    return _CHANNELS if target.quantized_everywhere else target.machine.lanes("float32")
