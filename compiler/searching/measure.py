"""Which measure a target's kernels have: timed here, computed by the target's own model, or predicted."""

from __future__ import annotations

from compiler.compression.predicted_times import is_calibrated
import targets
from compiler.errors import OptionError
from compiler.searching.layer_table import KernelTimes, TimedHere


def kernel_times(target: targets.Target, threads: int | None) -> KernelTimes:
    """The measure of a target.

    Raises:
        OptionError: nothing knows what a kernel takes there.
    """
    if target.fits_this_machine() and target.times_kernels:
        return TimedHere(target, threads)
    raise OptionError(target.name)
