"""Chooses between timing kernels and estimating their cost, by the caller's options and the target's abilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.errors import OptionError
from compiler.tuning.measuring.device_names import LOCAL
from targets.cuda.target import CudaTarget
from targets.errors import TargetError
from targets.measure import Measurer

if TYPE_CHECKING:
    import targets
    from compiler.tuning.settings import TuningOptions


def choose_measurer(target: targets.Target, options: TuningOptions) -> Measurer | None:
    """Measurer that computes the cost of kernels; None where they are timed on the devices.

    Raises:
        OptionError: kernels of the target cannot be timed on one of the devices, nor their cost be computed, or the
            tool that computes it is missing.
    """
    if isinstance(target, CudaTarget) and target.simulated:
        raise OptionError(f"target {target.name!r} is simulated: its kernels take no time", "tune for a device")
    if options.measure == "timed" or options.names_devices:
        _check_times(target, options)
        return None
    runs_here = target.times_kernels and target.fits_this_machine()
    if options.measure == "auto" and runs_here:
        return None
    measurer = target.measurer()
    if measurer is None:
        _check_times(target, options)
        raise OptionError(f"target {target.name!r} has no model of its processor", "use measure='timed'")
    try:
        measurer.version()
    except TargetError as error:
        raise OptionError(f"{measurer.name}: {error.message}", error.hint) from error
    return measurer


def _check_times(target: targets.Target, options: TuningOptions) -> None:
    if LOCAL not in options.devices:
        return
    if not target.times_kernels:
        raise OptionError(
            f"kernels of target {target.name!r} cannot be timed on this machine",
            "name the tensorwright-server of a bundle that runs beside the device (--device HOST:PORT), or write a "
            "folder of candidates (--pack DIR) and run DIR/run there",
        )
    if not target.fits_this_machine():
        raise OptionError(
            f"target {target.name!r} cannot be measured here: it needs {', '.join(target.missing_features())}",
            "name a device: devices=['HOST:PORT'] of an RPC server",
        )
