"""`write_pack`: writes a folder that measures a model's candidates on a machine with a device.

Also selects the configs of a kernel for a pack, and their code, without duplicates.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
import tvm
import tvm_ffi

import targets
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.device.cuda_libraries import cuda_libraries
from compiler.device.programs import TUNING_PROGRAM, device_programs, tuning_program
from compiler.device.runtime_libraries import FFI_LIBRARY, RUNTIME_LIBRARY
from compiler.driver.compile import find_target, model_name, translated_target_errors
from compiler.errors import CompilationError, OptionError, StorageError
from compiler.frontends.source import ImportOptions
from compiler.passes.context import PassOptions
from compiler.passes.schedule.lift_workspaces import with_equal_workspaces
from compiler.records.folders import user_folder
from compiler.records.identity import fingerprint, model_fingerprint, target_description
from compiler.records.library import read_current
from compiler.tuning.measuring.numbers import tolerance
from compiler.tuning.pack.results import PackedTask, PackHeader
from compiler.tuning.tasks import Task, extract_tasks
from schedules.config import Config
from schedules.errors import ScheduleError
from schedules.gpu.matmul_rule import TiledMatmulRule
from schedules.ir.stages import Kernel, dtype_of, shape_of
from schedules.ir.tvm_types import PrimFunc
from schedules.selection.apply import apply_rule
from targets import TargetError
from targets.cuda.target import CudaTarget

CANDIDATES = 12
"""Candidates per task if the caller sets no limit."""
PLAN = "plan.json"


@dataclass(frozen=True)
class Pack:
    """A written pack.

    Attributes:
        tasks, candidates, configs: numbers in the folder; configs with equal code are one candidate.
        known: number of configs left out because they are already recorded.
        skipped: kernels that are left out, with reasons.
    """

    folder: Path
    tasks: int
    candidates: int
    configs: int
    known: int
    bytes: int
    skipped: dict[str, str] = field(default_factory=dict)


def write_pack(
    source: object,
    target: str | targets.Target,
    output: Path,
    *,
    trials: int | None = None,
    records: str | Path | None = None,
    imports: ImportOptions | None = None,
    precision: str = "float32",
    progress: Callable[[str], None] | None = None,
) -> Pack:
    """Write a folder with the candidates of a model's kernels, compiled, and the program `run` that measures them.

    Args:
        source, imports, precision: see `compile`; tune what you will compile.
        output: a new folder.
        trials: total number of candidates; by default `CANDIDATES` per kernel.
        records: the folder of records; configs measured there are left out.

    Raises:
        OptionError: the folder exists, the target is not a GPU, or there is nothing to tune.
        StorageError: it cannot be written.
        ToolchainError, MissingDependencyError: nvcc, a C++ compiler or a library is missing.
        UserError: as `compile`.
    """
    chosen = _graphics_target(target)
    if trials is not None and trials < 1:
        raise OptionError(f"trials={trials}: there must be at least one")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OptionError(f"{output} exists and is not an empty folder", "give a new one")
    model = (imports or ImportOptions()).load(source)
    options = PassOptions(precision, model.checks, nodes=model.nodes)
    extracted = extract_tasks(model.mod, chosen, options, alternatives=False)
    tasks = sorted((each for each in extracted.tasks if each.tunable), key=lambda each: -each.count * each.operations)
    if not tasks:
        raise OptionError("no kernel of the model has a choice of configs", "compile it as it is")
    description = target_description(chosen)
    folder = Path(records) if records is not None else user_folder()
    known = _known(folder, description)
    writer = _Writer(chosen, output, extracted.skipped, progress if progress is not None else lambda _: None)
    with translated_target_errors():
        try:
            writer.write_programs()
            each_takes = CANDIDATES if trials is None else max(2, trials // len(tasks))
            for task in tasks:
                writer.add(task, known.get(task.key, set()), each_takes)
            header = PackHeader(
                target=fingerprint(description),
                target_name=chosen.name,
                description=description,
                model=model_fingerprint(model.mod, precision),
                model_name=model_name(source),
                tasks=tuple(writer.packed),
            )
            return writer.finish(header)
        except OSError as error:
            shutil.rmtree(output, ignore_errors=True)
            raise StorageError(f"{output} cannot be written: {error}", "free space, or give another folder") from error


def _graphics_target(target: str | targets.Target) -> CudaTarget:
    chosen = find_target(target)
    if not isinstance(chosen, CudaTarget) or chosen.simulated:
        raise OptionError(
            f"packs are for GPUs, and target {chosen.name!r} is not one",
            "tune on the device itself, or with --device over a network",
        )
    return chosen


def _known(folder: Path, description: dict[str, Any]) -> dict[str, set[Config]]:
    """The configs of each task that were timed, or failed, on the target."""
    target_key, configs_of = fingerprint(description), dict[str, set[Config]]()
    for record in read_current(folder).records:
        if record.target == target_key and record.method == "timed":
            configs_of.setdefault(record.task, set()).add(Config.of(record.config))
    return configs_of


class _Writer:
    """Writes the folder."""

    def __init__(
        self, target: CudaTarget, output: Path, skipped: dict[str, str], progress: Callable[[str], None]
    ) -> None:
        self.packed: list[PackedTask] = []
        self._target, self._output, self._skipped, self._progress = target, output, dict(skipped), progress
        self._plans: list[dict[str, Any]] = []
        self._known = 0

    def write_programs(self) -> None:
        """Write the program and the libraries that it needs."""
        for folder in ("lib", "tasks"):
            (self._output / folder).mkdir(parents=True, exist_ok=True)
        programs = device_programs(self._target)
        libraries = [programs / FFI_LIBRARY, programs / RUNTIME_LIBRARY, *cuda_libraries(self._target)]
        for library in libraries:
            shutil.copy(library, self._output / "lib")
        shutil.copy(tuning_program(self._target) / TUNING_PROGRAM, self._output)

    def add(self, task: Task, known: set[Config], most: int) -> None:
        """Compile the candidates of a task."""
        name = task.names[0]
        configs = ranked_configs(task, self._target.machine, known)
        self._known += len(known)
        if len(configs) < 2:
            self._skipped[name] = "all its configs are measured already"
            return
        self._progress(f"{name}: {task.rule.name}, {min(most, len(configs))} candidates")
        library = self._output / "tasks" / f"{len(self.packed)}.so"
        try:
            selected = candidates(task, self._target, configs[:most])
            built, problems = build_library(selected.chosen, self._target, library)
        except (ScheduleError, TargetError) as error:
            self._skipped[name] = str(error)
            return
        failed = [*selected.failed, *(config for each in problems for config in each.configs)]
        self.packed.append(
            PackedTask(
                rule=task.rule.name,
                rule_version=task.rule.version,
                workload=task.workload.key(),
                name=name,
                count=task.count,
                default=dict(task.default),
                candidates=tuple(tuple(dict(config) for config in each.configs) for each in built),
                failed=tuple(dict(config) for config in failed),
            )
        )
        self._plans.append(
            {
                "name": f"{name} ({task.rule.name})",
                "library": f"tasks/{library.name}",
                "arguments": _arguments(task, selected.chosen[0].function, selected.workspaces),
                "symbols": [symbol_of(index) for index in range(len(built))],
            }
        )

    def finish(self, header: PackHeader) -> Pack:
        """Write the plan."""
        if not self.packed:
            shutil.rmtree(self._output, ignore_errors=True)
            reasons = "; ".join(f"{name}: {why}" for name, why in self._skipped.items())
            raise OptionError(
                f"there is nothing to measure: {reasons}", "tuning is done, or the kernels have no choice"
            )
        text = header.model_dump_json()
        libraries = [path.read_bytes() for path in sorted((self._output / "tasks").iterdir())]
        plan = {
            "format": 1,
            "digest": hashlib.sha256(b"".join([text.encode(), *libraries])).hexdigest(),
            "header": text,
            "target": self._target.name,
            "compute_capability": self._target.machine.compute_capability,
            "tasks": self._plans,
        }
        (self._output / PLAN).write_text(json.dumps(plan), encoding="utf-8")
        size = sum(path.stat().st_size for path in self._output.rglob("*") if path.is_file())
        candidates_of = [each.candidates for each in self.packed]
        configs = sum(len(configs) for each in candidates_of for configs in each)
        return Pack(
            self._output, len(self.packed), sum(map(len, candidates_of)), configs, self._known, size, self._skipped
        )


def _arguments(task: Task, function: PrimFunc, workspaces: int) -> list[dict[str, Any]]:
    """The parameters of a task's functions, for the plan."""
    described = [
        {
            "shape": list(argument.shape),
            "dtype": argument.dtype,
            "output": argument.is_output,
            "compared": argument.is_output,
            "tolerance": tolerance(argument.dtype),
        }
        for argument in task.kernel.arguments
    ]
    if len(function.params) != len(described) + workspaces:
        raise CompilationError(f"kernel {task.names[0]!r} has other parameters when it is scheduled")
    buffers = list(function.params)[len(described) :]
    further = [
        {
            "shape": [int(size) for size in shape_of(buffer)],
            "dtype": dtype_of(buffer),
            "output": True,
            "compared": False,
            "tolerance": 0.0,
        }
        for buffer in buffers
    ]
    return [*described, *further]


# isort: split


def symbol_of(index: int) -> str:
    """The name of a candidate's function, by its index."""
    return f"kernel_{index}"


def build_library(
    chosen: Sequence[Candidate], target: targets.Target, path: Path
) -> tuple[list[Candidate], dict[Candidate, str]]:
    """Write a library of candidates with one function each, named by its index. Raises TargetError if the first one,
    the default, cannot be built.

    Returns:
        The candidates in it in order, and the reasons why others are missing.
    """
    try:
        _link(chosen, target, path)
        return list(chosen), {}
    except Exception as error:  # TVM passes on any exception of its passes
        if len(chosen) == 1:
            raise _failed(error) from error
    built: list[Candidate] = []
    problems: dict[Candidate, str] = {}
    for index, candidate in enumerate(chosen):
        try:
            _link([candidate], target, path)
            built.append(candidate)
        except Exception as error:
            if index == 0:
                raise _failed(error) from error
            problems[candidate] = _words(error)
    _link(built, target, path)
    return built, problems


def _link(chosen: Sequence[Candidate], target: targets.Target, path: Path) -> None:
    functions: dict[str, Any] = {}
    for index, each in enumerate(chosen):
        function = each.function.with_attr("global_symbol", symbol_of(index)).with_attr("tirx.is_scheduled", True)
        functions[symbol_of(index)] = function
    tvm_target = target.tvm_target()
    with tvm_target:
        library = tvm.tirx.build(tvm.IRModule(functions), tvm_target, PIPELINE)
    target.export_library(library, path)


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[-300:]


def _failed(error: Exception) -> TargetError:
    return error if isinstance(error, TargetError) else TargetError(f"the default cannot be built: {_words(error)}")


_HOPELESS = 4.0  # times the lowest estimate


@dataclass(frozen=True)
class Candidate:
    """Code of a task: the configs that produce it, and the scheduled function."""

    configs: tuple[Config, ...]
    function: PrimFunc


@dataclass(frozen=True)
class Candidates:
    """Candidates of a task, the rule's default first; `failed` maps configs without code to reasons. `workspaces`:
    number of trailing parameters that are buffers between launches."""

    task: Task
    chosen: tuple[Candidate, ...]
    workspaces: int
    failed: dict[Config, str]


def ranked_configs(task: Task, machine: Any, known: Collection[Config]) -> list[Config]:
    """The configs of a task worth trying: the default, then those not yet known, the most promising first according to
    the rule's own estimates, if any."""
    alternatives = [config for config in task.space if config != task.default]
    if isinstance(task.rule, TiledMatmulRule):
        costs = {config: task.rule.units(task.workload, config, machine) for config in (task.default, *alternatives)}
        least = min(costs.values())
        alternatives = [config for config in alternatives if costs[config] <= _HOPELESS * least]
        alternatives.sort(key=costs.__getitem__)
    return [task.default, *(config for config in alternatives if config not in known)]


def candidates(task: Task, target: targets.Target, configs: Sequence[Config]) -> Candidates:
    """The code of a task's configs, the first of which is the default. Raises schedules.errors.ScheduleError if the
    default produces no code."""
    kernel = Kernel.of(tvm.ir.load_json(task.kernel.function))
    scheduled: dict[Config, PrimFunc] = {}
    failed: dict[Config, str] = {}
    for config in configs:
        try:
            scheduled[config] = apply_rule(task.rule, kernel, task.workload, config, target.machine)
        except ScheduleError as error:
            if config == task.default:
                raise
            failed[config] = str(error)
    functions, workspaces = with_equal_workspaces(list(scheduled.values()))
    by_code: dict[int, tuple[list[Config], PrimFunc]] = {}
    for config, function in zip(scheduled, functions, strict=True):
        if function is None:
            failed[config] = "its buffers between launches differ from the default's"
            continue
        configs_of_code, _ = by_code.setdefault(tvm_ffi.structural_hash(function), ([], function))
        configs_of_code.append(config)
    chosen = tuple(Candidate(tuple(each), function) for each, function in by_code.values())
    return Candidates(task, chosen, workspaces, failed)
