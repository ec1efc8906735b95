"""Which measure a target's kernels have: timed here, or computed by the target's own model."""

from __future__ import annotations

import targets
from compiler.errors import OptionError, UserError
from compiler.frontends.imported_model import ImportedModel
from compiler.searching.layer_table import KernelTimes, TimedHere
from compiler.searching.lowered import LoweredModel
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.pool import Trial
from compiler.tuning.tasks import extract_tasks
from targets.errors import TargetError
from targets.measure import Measurer


class Modelled:
    """Kernels by a target's `Measurer`, in worker processes: the same numbers on every run."""

    def __init__(self, target: targets.Target, measurer: Measurer) -> None:
        self._target, self._measurer = target, measurer

    @property
    def name(self) -> str:
        return str(self._measurer.measure())

    def times(
        self, model: ImportedModel, lowered: LoweredModel, known: frozenset[str]
    ) -> tuple[dict[str, float], float | None]:
        """Raises UserError for a kernel that the model cannot tell."""
        found = extract_tasks(model.mod, self._target, alternatives=False)
        # What runs once, when a module is loaded, needs no cost.
        called = {name: why for name, why in found.skipped.items() if lowered.keys.get(name) in lowered.calls}
        if called:
            name, reason = next(iter(called.items()))
            raise UserError(f"the kernel {name!r} has no cost: {reason}", "give shapes= with numbers")
        wanted = [
            task for task in found.tasks if not known.issuperset(lowered.keys.get(name, "") for name in task.names)
        ]
        with EstimatingPool(self._target, self._measurer) as pool:
            for task in wanted:
                pool.define(task.kernel)
            outcomes = pool.trials([Trial(task.key, task.default) for task in wanted], lambda trial, outcome: None)
        times: dict[str, float] = {}
        for task, outcome in zip(wanted, outcomes, strict=True):
            if outcome.seconds is None:
                raise UserError(f"{self.name} cannot tell the cost of kernel {task.names[0]!r}: {outcome.note}")
            times.update(dict.fromkeys(task.names, outcome.seconds))
        return times, None


def kernel_times(target: targets.Target, threads: int | None) -> KernelTimes:
    """The measure of a target.

    Raises:
        OptionError: nothing knows what a kernel takes there, or the tool that does is missing.
    """
    if target.fits_this_machine() and target.times_kernels:
        return TimedHere(target, threads)
    measurer = target.measurer()
    if measurer is None or measurer.unit != "s":
        raise OptionError(
            f"target {target.name!r} runs elsewhere, and has no model of what a kernel takes",
            "limit mb or peak_mb, or name a target that this machine runs",
        )
    try:
        return _checked(Modelled(target, measurer))
    except TargetError as error:
        raise OptionError(f"{measurer.name}: {error.message}", error.hint) from error


def _checked(found: Modelled) -> Modelled:
    """With its tool at hand."""
    _ = found.name
    return found
