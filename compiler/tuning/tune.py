"""`tune`: finds the fastest configs of a model and records them.

Before anything is measured, devices are checked: each must be reachable, and able to run the target's code.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from typing_extensions import Unpack

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from compiler.device.compatibility import ask_versions, check_kernels_run_there
from compiler.device.connection import Connection, NoDeviceServerError
from compiler.device.credentials import Credentials
from compiler.driver.compile import find_target, model_name
from compiler.errors import OptionError
from compiler.frontends.source import ImportOptions
from compiler.passes.context import PassOptions
from compiler.records.folders import pretrained_model
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.library import TunedConfigs, read_current
from compiler.records.records import RecordWriter
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, options_of, takes_imports
from compiler.support.progress_bar import automatic, shows_progress
from compiler.tuning.cost_models import CostModel, cost_models
from compiler.tuning.in_model import COMPARISON_SECONDS, ModelComparison, conclude
from compiler.tuning.measuring.device_names import LOCAL, parse_device
from compiler.tuning.measuring.estimating import EstimatingPool
from compiler.tuning.measuring.fleet import with_fleets
from compiler.tuning.measuring.pool import MeasurementPool
from compiler.tuning.measuring.runners import is_reachable
from compiler.tuning.networks import tune_network
from compiler.tuning.result import TuneResult, TuningInterrupted, result_of
from compiler.tuning.search import searches
from compiler.tuning.session import Origin, Session
from compiler.tuning.settings import TuningOptions
from compiler.tuning.state import Limits, Progress
from compiler.tuning.tasks import extract_tasks
from targets import Target
from targets.cuda.target import CudaTarget
from targets.errors import TargetError
from targets.measure import Measurer, NetworkMeasurer

_COMPILE_OVER_EXTRACT = 1.5  # a whole compilation takes longer than task extraction, which lowers every estimate
_LEADERS_SHARE = 0.08  # fraction of the time for the leaders
_LARGEST_END = 0.5
_OTHERS = 0.15  # fraction of the processors that other programs may use before times are taken on one core


@interruptible
@shows_progress
@takes_imports
def tune(
    source: object,
    target: str | targets.Target = "host",
    *,
    trials: int | None = None,
    time_budget: float | None = None,
    records: str | Path | None = None,
    devices: Sequence[str] = (LOCAL,),
    credentials: Mapping[str, Credentials] | None = None,
    precision: str = "float32",
    threads: int | None = None,
    timing: str = "auto",
    measure: str = "auto",
    memory_limit: int | None = None,
    cost_model: str | CostModel = "xgboost",
    search: str = "evolutionary",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> TuneResult:
    """Find fast configs for a model's kernels by measuring, and record them; `compile` uses the records automatically.

    Args:
        source, precision, threads, and the import options (shapes, constants, capacity, ...): as in `compile`; they
            should match the later compilation.
        trials: total number of configs to measure. Without a limit, the search takes ten minutes; the search of a whole
            network ends by itself.
        time_budget: seconds for the search and for comparing its results in the model, at least 10. They begin with the
            first config after the references are built and the defaults measured.
        records: the folder of records to continue from and append to; None: the user's own.
        devices: where to measure: "local", "HOST:PORT" of a tensorwright-server, which is first asked whether it can
        run
            the target's kernels, or of a TVM RPC server, "KEY@HOST:PORT" of a tracker, for all its servers with that
            key.
        credentials: keys for encrypted connections, by device; a tensorwright-server with keys accepts no others.
        timing: "parallel" times kernels on all cores; "serial" on one, by processor time, for a shared machine; "auto"
            checks whether other programs use it.
        measure: "timed" runs kernels on a device, or here; "modelled" computes their cost by the target's measurer;
            "auto" times them if a device is named or this machine can run them, and otherwise computes the cost.
        memory_limit: limit on the SRAM of a network on an accelerator, in bytes; the settings with the fewest cycles
            within it are searched. None for no limit.
        cost_model: a name (`compiler.tuning.cost_models.cost_models.names()`) or an object with `update` and `predict`.
        search: a name from `compiler.tuning.search.searches.names()`.
        seed: seed of the search.
        progress: called after every trial.

    Raises:
        UserError: the model, an option, a device or the folder of records is invalid.
        TuningInterrupted: a KeyboardInterrupt; it holds the result so far.
    """
    options = options_of(TuningOptions, {**locals(), "credentials": credentials or {}})
    return _tuned(source, find_target(target, threads), options, ImportOptions.of(imports))


def _tuned(source: object, target: targets.Target, options: TuningOptions, imports: ImportOptions) -> TuneResult:
    options.check()
    measurer = choose_measurer(target, options)
    if measurer is None and isinstance(target.measurer(), NetworkMeasurer):
        raise OptionError(f"networks on target {target.name!r} are not timed", "leave devices and measure out")
    remote = [device for device in options.devices if device != LOCAL]
    unchecked = [note for device in remote if (note := check_device(device, target, options.credentials.get(device)))]
    model = imports.load(source)
    if isinstance(measurer, NetworkMeasurer):
        return tune_network(source, model, target, measurer, options)
    if options.memory_limit is not None:
        raise OptionError(f"target {target.name!r} has no limit of memory to tune for", "leave memory_limit out")
    for_passes = PassOptions(options.precision, model.checks, nodes=model.nodes)
    extracting = time.monotonic()
    extracted = extract_tasks(model.mod, target, for_passes, alternatives=target.pipeline == "processor")
    compile_seconds = _COMPILE_OVER_EXTRACT * (time.monotonic() - extracting)
    key = model_fingerprint(model.mod, options.precision)
    local = LOCAL in options.devices and measurer is None
    seconds, serial = options.seconds, _serial(options) if measurer is None else False
    with (
        RecordWriter.in_folder(options.folder, target_description(target)) as writer,
        _pool(target, options, measurer, serial=serial) as pool,
        ModelComparison(model, target, for_passes, options.threads, serial=serial) as comparison,
    ):
        search = searches.make(options.search, seed=options.seed)
        origin = Origin(",".join(dict.fromkeys(options.devices)) if measurer is None else "", key, model_name(source))
        session = Session(
            target,
            extracted.tasks,
            pool,
            writer,
            _cost_model(options, target),
            search,
            origin=origin,
            notify=options.progress,
        )
        earlier = read_current(writer.path)
        resumed = session.resume(earlier.records)
        session.problems += [*unchecked, *earlier.problems]
        interrupted, latency = False, None
        try:
            session.run(Limits(options.trials, seconds, _seconds_of_the_end(seconds, compile_seconds, local)))
            deadline = math.inf if seconds is None else session.search_began + seconds
            known = TunedConfigs(target, earlier, key).tuned_itself
            latency = conclude(session, comparison if local else None, known, deadline)
        except KeyboardInterrupt:
            interrupted = True
            pool.kill()
    result = result_of(session, extracted, writer.path, resumed=resumed, interrupted=interrupted, latency=latency)
    if interrupted:
        raise TuningInterrupted(result)
    return result


def _pool(
    target: targets.Target, options: TuningOptions, measurer: Measurer | None, *, serial: bool
) -> MeasurementPool | EstimatingPool:
    if measurer is None:
        return MeasurementPool(target, with_fleets(options.devices), serial=serial, credentials=options.credentials)
    return EstimatingPool(target, measurer)


def _seconds_of_the_end(remaining: float | None, compile_seconds: float, in_model: bool) -> float:
    """Seconds to reserve for comparing leaders, and modules: two of those are compiled, one of them twice."""
    if remaining is None:
        return 0.0
    modules = 3 * compile_seconds + 2 * COMPARISON_SECONDS if in_model else 0.0
    return min(_LARGEST_END * remaining, _LEADERS_SHARE * remaining + modules)


def _cost_model(options: TuningOptions, target: targets.Target) -> CostModel:
    name = options.cost_model
    if not isinstance(name, str):
        return name
    if name == "xgboost":
        architecture = getattr(target.machine, "architecture", "")  # GPU machines have none
        return cost_models.make(name, seed=options.seed, pretrained=pretrained_model(architecture))
    return cost_models.make(name)


def _serial(options: TuningOptions) -> bool:
    """True if kernels are timed on one core, by processor time."""
    return options.timing == "serial" or (options.timing == "auto" and LOCAL in options.devices and _others_busy())


def _others_busy() -> bool:
    """True if other programs are using this machine's processors."""
    import psutil

    return psutil.cpu_percent(interval=0.7) / 100 > _OTHERS if (os.cpu_count() or 1) > 1 else False


def choose_measurer(target: targets.Target, options: TuningOptions) -> Measurer | None:
    """Measurer that computes the cost of kernels; None if they are timed on the devices.

    Raises:
        OptionError: kernels of the target can neither be timed on one of the devices nor have their cost computed, or
            the tool that computes it is missing.
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


def check_device(device: str, target: Target, credentials: Credentials | None = None) -> str | None:
    """Query a device's server, as `push` does.

    Args:
        device: "HOST:PORT" of a server or "KEY@HOST:PORT" of a tracker, whose devices are not queried: those are TVM's
            servers.
        credentials: for an encrypted connection.

    Returns:
        The part that could not be checked: TVM's servers do not report what they are. None if all was checked.

    Raises:
        OptionError: nothing listens there.
        DeviceError: the device cannot run kernels of the target, its server has another version, or it rejects this
            client.
    """
    key, host, port = parse_device(device)
    if key and credentials is not None:
        raise OptionError(f"device {device!r}: connections over a tracker are not encrypted", "name HOST:PORT")
    if not is_reachable(device):
        raise OptionError(
            f"device {device!r} cannot be reached", "start its server, and check that no firewall blocks the port"
        )
    unknown = f"device {device}: no report on whether it can run target {target.name!r} (no tensorwright-server)"
    if key:
        return unknown
    address = f"{host}:{port}"
    try:
        connection = Connection(address, credentials)
    except NoDeviceServerError:
        if credentials is not None:
            raise
        return unknown
    with closing(connection):
        check_kernels_run_there(target, ask_versions(connection), address)
    return None
