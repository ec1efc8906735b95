"""`tune`: a model in, records of its fastest configs out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)
import targets
from compiler.device.credentials import Credentials
from compiler.driver.compile import find_target, model_name
from compiler.errors import OptionError
from compiler.frontends.source import Constants, Shapes, import_model
from compiler.passes.context import PassOptions
from compiler.records.identity import model_fingerprint, target_description
from compiler.records.library import TunedConfigs, pretrained_model, read_current, user_folder
from compiler.records.records import RecordWriter
from compiler.reports.formatting import format_seconds
from compiler.support.notebook import table_html
from compiler.support.progress_bar import automatic, shows_progress
from compiler.tuning.conclusion import COMPARISON_SECONDS, conclude
from compiler.tuning.cost_models import CostModel, cost_models
from compiler.tuning.in_model import ModelComparison
from compiler.tuning.measuring.devices import check_device
from compiler.tuning.measuring.lab import Lab
from compiler.tuning.measuring.runners import LOCAL, parse_device
from compiler.tuning.progress import Limits, Progress, SearchCost
from compiler.tuning.search import searches
from compiler.tuning.session import Session
from compiler.tuning.tasks import Extracted, extract_tasks
from targets.cuda.target import CudaTarget

DEFAULT_SECONDS = 600.0
"""Of searching, when the caller sets no limit."""
_COMPILE_OVER_EXTRACT = 1.5  # a whole compilation takes longer than finding the tasks, which lowers every way
_LEADERS_SHARE = 0.08  # of the time, for the leaders
_LARGEST_END = 0.5
_OTHERS = 0.15  # share of the processors that other programs may use before times are taken on one core


@dataclass(frozen=True)
class TaskResult:
    """One task: seconds of a call with the rule's default and with the best config, and what became of it.

    Attributes:
        of_limit: the best's share of what the machine can do (1 is all of it); None when that is not known.
        instead_of: the key of the task that this one computes the same as, in another way; "" for the untuned one.
        fastest_seconds: `best_seconds` of the fastest way.
    """

    kernel: str
    rule: str
    key: str
    count: int
    default_seconds: float | None
    best_seconds: float | None
    config: Mapping[str, Any]
    trials: int
    failed: int
    curve: tuple[tuple[int, float], ...]
    finished: str
    of_limit: float | None = None
    instead_of: str = ""
    fastest_seconds: float | None = None

    @property
    def gain(self) -> float:
        """Default over best."""
        return self.default_seconds / self.best_seconds if self.default_seconds and self.best_seconds else 1.0


@dataclass(frozen=True)
class TuneResult:
    """What `tune` returns.

    Attributes:
        before, after: seconds of one run of the model spent in kernels, untuned and tuned.
        records: the file that was appended to.
        resumed: trials found in the records.
        method: "parallel" or "serial": see `compiler.records.records.Record`.
        history: (seconds since the start, trials, seconds of the model).
        predictions: (task, the cost model's score before measuring, seconds) of each config proposed.
        skipped: kernels that were not tuned, and why.
        interrupted: the user stopped it; what was measured is recorded.
        cost: trials, seconds and processor seconds of the search alone.
        latency: seconds of a whole run of the model, untuned and tuned, measured in turns at the end; None where that
            was not done (on other devices) or nothing was won.
    """

    tasks: tuple[TaskResult, ...]
    before: float
    after: float
    seconds: float
    trials: int
    resumed: int
    records: Path
    method: str
    history: tuple[tuple[float, int, float], ...] = ()
    predictions: tuple[tuple[str, float, float], ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    interrupted: bool = False
    cost: SearchCost = field(default_factory=SearchCost)
    latency: tuple[float, float] | None = None

    def __repr__(self) -> str:
        return (
            f"<TuneResult {len(self.tasks)} tasks, {self.trials} trials in {self.seconds:.0f} s: "
            f"{format_seconds(self.before)} in kernels before, {format_seconds(self.after)} after>"
        )

    def _repr_html_(self) -> str:
        rows = [(each.kernel, each.rule, each.trials, f"{each.gain:.2f} times", each.finished) for each in self.tasks]
        title = f"{self.trials} trials: {format_seconds(self.before)} in kernels, then {format_seconds(self.after)}"
        return table_html(title, ("kernel", "rule", "trials", "gain", "finished"), rows)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        tasks = [{**asdict(task), "gain": task.gain} for task in self.tasks]
        return {**asdict(self), "tasks": tasks, "records": str(self.records)}


@shows_progress
def tune(
    source: object,
    target: str | targets.Target = "host",
    *,
    trials: int | None = None,
    time_budget: float | None = None,
    records: str | Path | None = None,
    devices: Sequence[str] = (LOCAL,),
    credentials: Mapping[str, Credentials] | None = None,
    shapes: Shapes | None = None,
    constants: Constants | None = None,
    example_inputs: Sequence[Any] | None = None,
    precision: str = "float32",
    threads: int | None = None,
    timing: str = "auto",
    cost_model: str | CostModel = "xgboost",
    search: str = "evolutionary",
    seed: int = 0,
    progress: Callable[[Progress], None] | None = automatic,
) -> TuneResult:
    """Find fast configs for a model's kernels by measuring, and record them; `compile` uses the records by itself.

    Args:
        source, shapes, constants, example_inputs, precision, threads: as in `compile`; tune what you will compile.
        trials: how many configs to measure in all. Without a limit, ten minutes are searched.
        time_budget: seconds for all of it. Of less than a minute for a large model, what has to be done may take more:
            the defaults are measured, and what is chosen is compared in the model.
        records: the folder of records to go on from and to append to; the user's own when None.
        devices: where to measure: "local", "HOST:PORT" of a tensorwright-server, which is asked first whether it can
            run the target's kernels, or of a TVM RPC server, "KEY@HOST:PORT" of a tracker.
        credentials: keys for encrypted connections, by device; a tensorwright-server that has keys takes no other.
        timing: "parallel" times kernels on all cores; "serial" on one, by processor time, for a machine that others
            use too; "auto" looks whether others do.
        cost_model: a name (`compiler.tuning.cost_models.cost_models.names()`) or an object with `update` and `predict`.
        search: a name of `compiler.tuning.search.searches.names()`.
        seed: of the search.
        progress: called after every trial.

    Raises:
        UserError: the model, an option, a device or the folder of records is at fault.
    """
    _check(trials, time_budget, timing, devices)
    chosen = find_target(target, threads)
    _check_timed(chosen, devices)
    if LOCAL in devices and not chosen.fits_this_machine():
        raise OptionError(
            f"target {chosen.name!r} cannot be measured here: it needs {', '.join(chosen.missing_features())}",
            "name a device: devices=['HOST:PORT'] of an RPC server",
        )
    began = time.monotonic()
    keys = dict(credentials or {})
    remote = [device for device in devices if device != LOCAL]
    unchecked = [note for device in remote if (note := check_device(device, chosen, keys.get(device)))]
    model = import_model(source, shapes=shapes, constants=constants, example_inputs=example_inputs)
    options = PassOptions(precision, model.checks)
    extracting = time.monotonic()
    extracted = extract_tasks(model.mod, chosen, options, other_ways=chosen.pipeline == "processor")
    compile_seconds = _COMPILE_OVER_EXTRACT * (time.monotonic() - extracting)
    key = model_fingerprint(model.mod, precision)
    folder = Path(records) if records is not None else user_folder()
    description = target_description(chosen)
    ranking = cost_model if not isinstance(cost_model, str) else _cost_model(cost_model, seed)
    serial = timing == "serial" or (timing == "auto" and LOCAL in devices and _others_busy())
    if trials is None and time_budget is None:
        time_budget = DEFAULT_SECONDS
    deadline = math.inf if time_budget is None else began + time_budget
    with (
        RecordWriter.in_folder(folder, description) as writer,
        Lab(chosen, devices, serial=serial, credentials=keys) as lab,
        ModelComparison(model, chosen, options, threads, serial=serial) as comparison,
    ):
        session = Session(
            chosen,
            extracted.tasks,
            lab,
            writer,
            ranking,
            searches.make(search, seed=seed),
            device=",".join(devices),
            model=(key, model_name(source)),
            notify=progress,
        )
        earlier = read_current(writer.path)
        resumed = session.resume(earlier.records)
        session.problems += [*unchecked, *earlier.problems]
        interrupted = False
        latency = None
        try:
            left = None if time_budget is None else deadline - time.monotonic()
            session.run(Limits(trials, left, _seconds_of_the_end(left, compile_seconds, LOCAL in devices)))
            known = TunedConfigs(chosen, earlier, key).tuned_itself
            latency = conclude(session, comparison if LOCAL in devices else None, known, deadline)
        except KeyboardInterrupt:
            interrupted = True
            lab.kill()
        return _result(session, extracted, writer.path, resumed, interrupted, latency)


def _seconds_of_the_end(left: float | None, compile_seconds: float, in_model: bool) -> float:
    """What to keep of the time for comparing leaders, and modules: two of those are compiled, one of them twice."""
    if left is None:
        return 0.0
    modules = 3 * compile_seconds + 2 * COMPARISON_SECONDS if in_model else 0.0
    return min(_LARGEST_END * left, _LEADERS_SHARE * left + modules)


def _check(trials: int | None, time_budget: float | None, timing: str, devices: Sequence[str]) -> None:
    if trials is not None and trials < 1:
        raise OptionError(f"trials={trials}: there must be at least one")
    if time_budget is not None and time_budget <= 0:
        raise OptionError(f"time_budget={time_budget}: it is in seconds, and more than none")
    if timing not in ("auto", "parallel", "serial"):
        raise OptionError(f"timing {timing!r} is not supported", "use auto, parallel or serial")
    if not devices:
        raise OptionError("no device is named", "leave devices out for this machine")
    for device in devices:
        if device != LOCAL:
            parse_device(device)


def _check_timed(target: targets.Target, devices: Sequence[str]) -> None:
    """Raise OptionError where kernels of the target cannot be timed on one of the devices."""
    if isinstance(target, CudaTarget) and target.simulated:
        raise OptionError(f"target {target.name!r} is simulated: its kernels take no time", "tune for a device")
    if not target.times_kernels and LOCAL in devices:
        raise OptionError(
            f"kernels of target {target.name!r} cannot be timed on this machine",
            "name the tensorwright-server of a bundle that runs beside the device (--device HOST:PORT), or write a "
            "folder of candidates (--pack DIR) and run DIR/run there",
        )


def _cost_model(name: str, seed: int) -> CostModel:
    if name == "xgboost":
        return cost_models.make(name, seed=seed, pretrained=pretrained_model())
    return cost_models.make(name)


def _others_busy() -> bool:
    """Whether other programs use this machine's processors now."""
    import psutil

    return psutil.cpu_percent(interval=0.7) / 100 > _OTHERS if (os.cpu_count() or 1) > 1 else False


def _result(
    session: Session,
    extracted: Extracted,
    path: Path,
    resumed: int,
    interrupted: bool,
    latency: tuple[float, float] | None,
) -> TuneResult:
    tasks = []
    for state in session.states:
        best = state.best
        tasks.append(
            TaskResult(
                state.task.names[0],
                state.task.rule.name,
                state.task.key,
                state.task.count,
                state.default_seconds,
                best[1] if best is not None else None,
                dict(best[0]) if best is not None else {},
                state.trials,
                state.failed,
                tuple(state.curve),
                state.finished,
                state.of_limit,
                state.task.instead_of,
                state.fastest_seconds if best is not None else None,
            )
        )
    progress = session.progress
    return TuneResult(
        tuple(tasks),
        sum(each.count * (each.default_seconds or 0.0) for each in tasks if not each.instead_of),
        sum(each.count * (each.fastest_seconds or 0.0) for each in tasks if not each.instead_of),
        progress.seconds,
        progress.trials,
        resumed,
        path,
        session.method,
        tuple(progress.history),
        tuple(session.predictions),
        extracted.skipped,
        tuple(session.problems),
        interrupted,
        session.cost,
        latency,
    )
