"""Table of kernel times on the target, each measured or computed once; a candidate's time is the sum over its kernels.

Costs of a candidate: time from this table, sizes from the memory planner, cycles from the accelerator's
compiler.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError
from tvm.ir import IRModule

import targets
from compiler.artifact.storage import write_json
from compiler.errors import OptionError, StorageError
from compiler.frontends.imported_model import ImportedModel
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import PipelineResult, run_pipeline
from compiler.tuning.networks import network_cost
from compiler.tuning.tasks import kernel_calls
from schedules.ir.stages import kernels_of
from schedules.ir.tir import PrimFunc, structural_hash, structural_map, tirx


class WholeRun(BaseModel):
    """A module whose kernels are in the table, and the measurement of the whole module.

    Attributes:
        kernels: seconds of its kernels by the table when it was measured; None if it filled the table itself.
        own: seconds of its kernels in that run.
        seconds: seconds per run.
        calls: number of kernel calls per run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kernels: float | None
    own: float
    seconds: float
    calls: int


class _Contents(BaseModel):
    model_config = ConfigDict(extra="forbid")

    measure: str
    kernels: dict[str, float]
    whole: list[WholeRun]


@dataclass(frozen=True)
class Run:
    """A module measured as a whole: seconds per run, and of its kernels in it."""

    lowered: LoweredModel
    seconds: float
    kernels: float


@dataclass(frozen=True)
class Measured:
    """Seconds per call of kernels, by key, and the run in which they were measured."""

    kernels: Mapping[str, float]
    run: Run | None = None


class KernelTimes(Protocol):
    """The source of kernel times of a target."""

    @property
    def name(self) -> str:
        """Name of the measure; numbers of different measures must not be mixed."""

    def some(self, candidates: Sequence[LoweredModel], wanted: AbstractSet[str]) -> Measured:
        """Measure some of the kernels in `wanted`, at least one: the results are stored before others are measured.
        `candidates`: models that call them."""

    def whole(self, lowered: LoweredModel) -> Measured:
        """Measure a module as compiled."""

    def close(self) -> None:
        """End the worker processes; they are restarted when needed."""


class LayerTable:
    """Fills itself when candidates need kernels that it lacks.

    Args:
        measure: source of the target's kernel times.
        path: where to store it, so that a resumed search measures nothing twice; None: in memory.
        report: called with the number of kernels to be measured.
    """

    def __init__(
        self,
        target: targets.Target,
        measure: KernelTimes,
        path: Path | None = None,
        report: Callable[[str], None] = lambda step: None,
    ) -> None:
        self._target, self._measure, self._path, self._report = target, measure, path, report
        self._contents = _read(path, measure.name)

    def lowered(self, model: ImportedModel) -> LoweredModel:
        """The kernels of a model."""
        return lower(model, self._target)

    def missing(self, lowered: LoweredModel) -> set[str]:
        """Keys that the table lacks."""
        return set(lowered.calls) - set(self._contents.kernels)

    def fill(self, candidates: Sequence[LoweredModel]) -> None:
        """Measure the kernels of these candidates that the table lacks. Raises the measure's UserErrors."""
        while wanted := set().union(*(self.missing(each) for each in candidates)):
            self._report(f"measure {len(wanted)} kernel(s)")
            self._keep(self._measure.some([each for each in candidates if self.missing(each)], wanted))

    def whole(self, lowered: LoweredModel) -> float:
        """Seconds per run of the module as compiled; new kernels are added to the table."""
        measured = self._measure.whole(lowered)
        self._keep(measured)
        assert measured.run is not None
        return measured.run.seconds

    def _keep(self, measured: Measured) -> None:
        run, contents = measured.run, self._contents
        kernel_seconds = None if run is None or self.missing(run.lowered) else self._sum(run.lowered)
        contents.kernels.update({key: each for key, each in measured.kernels.items() if key not in contents.kernels})
        if run is not None:
            calls = run.lowered.count
            contents.whole.append(WholeRun(kernels=kernel_seconds, own=run.kernels, seconds=run.seconds, calls=calls))
        if self._path is not None:
            write_json(self._path, contents.model_dump())

    def seconds(self, lowered: LoweredModel) -> float:
        """Seconds per run of a model whose kernels are all known."""
        return self._sum(lowered) + self._per_call * lowered.count

    @property
    def _per_call(self) -> float:
        """Overhead of a run per kernel call, in seconds: the median over modules that were run as a whole."""
        found = [(each.seconds - each.own) / each.calls for each in self._contents.whole if each.calls]
        return median(found) if found else 0.0

    def _sum(self, lowered: LoweredModel) -> float:
        return sum(self._contents.kernels[key] * count for key, count in lowered.calls.items())

    @property
    def kernels(self) -> int:
        """Number of kernels in the table."""
        return len(self._contents.kernels)

    @property
    def measure(self) -> str:
        """Measure of the numbers."""
        return self._measure.name

    def errors(self) -> list[float]:
        """Relative errors |table - run| / run of modules measured as a whole after their kernels were known."""
        return [
            abs(each.kernels + self._per_call * each.calls - each.seconds) / each.seconds
            for each in self._contents.whole
            if each.kernels is not None
        ]

    def close(self) -> None:
        """End the measure's processes."""
        self._measure.close()


def _read(path: Path | None, measure: str) -> _Contents:
    empty = _Contents(measure=measure, kernels={}, whole=[])
    if path is None or not path.exists():
        return empty
    try:
        contents = _Contents.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StorageError(
            f"{path} is not a table of layers: {error}", "remove it, or name another storage="
        ) from error
    if contents.measure != measure:
        raise StorageError(
            f"{path} holds numbers {contents.measure!r}, this search needs {measure!r}", "name another storage="
        )
    return contents


# The kernels that a run of a model calls, before scheduling: equal ones have equal keys in all candidates.


@dataclass(frozen=True, eq=False)
class LoweredModel:
    """The kernel calls of one run.

    Attributes:
        model: the model that was lowered.
        mod: its unscheduled kernels.
        keys: key of each kernel by its name in the module.
        calls: number of calls of each key per run.
    """

    model: ImportedModel
    mod: IRModule
    keys: Mapping[str, str]
    calls: Mapping[str, int]

    @property
    def count(self) -> int:
        """Number of kernel calls per run."""
        return sum(self.calls.values())


def lower(model: ImportedModel, target: targets.Target) -> LoweredModel:
    """Lower a model to kernels. Raises the passes' UserError and InternalError."""
    mod = pipeline_of(model, target, until="schedule", without=("apply-schedules", "lift-workspaces")).mod
    keys = {str(variable.name_hint): _key(function) for variable, function in kernels_of(mod)}
    calls: Counter[str] = Counter()
    for name, count in kernel_calls(mod).counts.items():
        calls[keys[name]] += count
    return LoweredModel(model, mod, keys, dict(calls))


def _key(kernel: PrimFunc) -> str:
    """A key that is equal for kernels that only differ in floating-point constants, like quantization scales, which do
    not change their time."""
    function = kernel.without_attr("global_symbol")
    plain = structural_map(function, (tirx.FloatImm, _without_value))
    return f"{structural_hash(plain) & (1 << 64) - 1:016x}"


def _without_value(constant: Any) -> Any:
    is_simple = constant.value in (0.0, 1.0, -1.0) or not math.isfinite(constant.value)
    return constant if is_simple else tirx.FloatImm(str(constant.ty.dtype), 0.5)


def pipeline_of(
    model: ImportedModel, target: targets.Target, *, until: str | None = None, without: Collection[str] = ()
) -> PipelineResult:
    """Run the passes over a model, like `compile` without tuning records, except those named in `without`."""
    options = PassOptions("float32", model.checks, model.state_positions(), model.nodes)
    context = PipelineContext(target=target, machine=target.machine, options=options)
    left_out = {f"instead-of:{name}": None for name in without}
    return run_pipeline(model.mod, context, passes=left_out or None, until=until)


Costs = dict[str, float]
_SIZES = frozenset({"mb", "peak_mb"})
_CYCLES = frozenset({"cycles", "sram_kb"})


class Accelerator(Protocol):
    """Computes the costs of a whole network on an accelerator."""

    def costs(self, model: ImportedModel) -> Costs:
        """ "cycles", "sram_kb", and "ms" at the accelerator's clock."""


class CostModel:
    """Costs by the names of a budget. Raises OptionError if the target has no such cost.

    Args:
        wanted: the names to compute.
        table: table of kernel times; None if an accelerator runs the whole network.
        accelerator: None for a processor.
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
                f"target {target.name!r} is not an accelerator whose compiler counts cycles",
                "limit ms, mb or peak_mb, or name an Ethos-U",
            )

    def costs(self, models: Sequence[ImportedModel]) -> list[Costs]:
        """Costs of several candidates; kernels that they share are measured only once."""
        all_costs: list[Costs] = [{} for _ in models]
        if self.accelerator is not None:
            for costs, model in zip(all_costs, models, strict=True):
                costs.update(
                    {name: cost for name, cost in self.accelerator.costs(model).items() if name in self.wanted}
                )
        elif "ms" in self.wanted:
            for costs, seconds in zip(all_costs, self._seconds(models), strict=True):
                costs["ms"] = 1e3 * seconds
        if _SIZES.intersection(self.wanted):
            for costs, model in zip(all_costs, models, strict=True):
                sizes = sizes_of(model, self.target)
                costs.update({name: size for name, size in sizes.items() if name in self.wanted})
        return all_costs

    def _seconds(self, models: Sequence[ImportedModel]) -> list[float]:
        table = self.table
        assert table is not None
        lowered = [table.lowered(model) for model in models]
        table.fill(lowered)
        return [table.seconds(each) for each in lowered]

    def close(self) -> None:
        """End the measuring processes; they are restarted when needed."""
        if self.table is not None:
            self.table.close()


def sizes_of(model: ImportedModel, target: targets.Target) -> Costs:
    """ "mb" of parameters as stored in the module's file, and "peak_mb" of activations, as planned."""
    result = pipeline_of(model, target)
    plans = result.report.memory or {}
    return {
        "mb": sum(array.nbytes for array in result.stored_parameters().values()) / 1e6,
        "peak_mb": max((int(plan["peak"]) for plan in plans.values()), default=0) / 1e6,
    }


def excess(costs: Mapping[str, float], budget: Mapping[str, float]) -> float:
    """Largest fraction by which a cost exceeds its limit; 0 or less if all limits are met."""
    return max(costs[name] / limit - 1 for name, limit in budget.items())


# Costs of a whole network on an accelerator, from the accelerator's own compiler.

_CHANNELS = 8  # output channels that an Ethos-U computes at once


class CountedCycles:
    """Cycles and memory of a quantized network from Vela, the Ethos-U's compiler: the same in every run."""

    def __init__(self, target: targets.Target) -> None:
        self._target = target

    def costs(self, model: ImportedModel) -> Costs:
        """Cycles of the accelerator and the processor, and peak SRAM. Raises OptionError if Vela is missing, or no part
        of the network runs on the accelerator."""
        found = network_cost(model, self._target)
        return {"cycles": float(found.cost), "sram_kb": float(found.memory or 0) / 1024}


def accelerator_of(target: targets.Target) -> Accelerator | None:
    """Cycle counter of a target's accelerator; None for processors."""
    return CountedCycles(target) if target.quantized_everywhere else None


def channels_at_once(target: targets.Target) -> int:
    """Number of channels that a target computes at once: sub-nets keep multiples of them."""
    return _CHANNELS if target.quantized_everywhere else target.machine.lanes("float32")
