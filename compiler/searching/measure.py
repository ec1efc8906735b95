"""Which measure a target's kernels have: timed here, or computed by the target's own model."""

from __future__ import annotations

import targets
from compiler.errors import OptionError
from compiler.searching.layer_table import KernelTimes
from compiler.searching.modelled import Modelled
from compiler.searching.timed import TimedHere
from targets.errors import TargetError


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
