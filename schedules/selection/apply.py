"""Schedules every kernel of a lowered module and reports what was done to each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from schedules.config import Config
from schedules.errors import NotScheduledError, RuleError
from schedules.instructions.finish import finish
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import s_tir, structural_equal, structural_hash, tirx, tvm
from schedules.machine import Machine
from schedules.rule import AnyRule, Workload
from schedules.selection.registry import rules as all_rules

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PrimFunc

STRICT = "TENSORWRIGHT_STRICT_RULES"
"""Environment variable: an unexpected exception of a rule ends the compilation, as in the test suite. Without
it, the failure is reported and another rule serves the kernel."""

ConfigSource = Mapping[str, Config] | Callable[[AnyRule, Any], Config | None]


@dataclass(frozen=True)
class RuleFailure:
    """A rule that matched a kernel and then failed on it."""

    rule: str
    error: str


@dataclass(frozen=True)
class KernelReport:
    """The rule and config of one kernel. `source` is "default", "record", "as-is" (no rule served it) or
    "scheduled-before"."""

    kernel: str
    rule: str | None
    config: Config
    source: str
    workload: str = ""
    failures: tuple[RuleFailure, ...] = ()
    same_as: str | None = None


@dataclass
class ScheduleReport:
    """One line per kernel, in the order of the module, and the total time in seconds."""

    kernels: list[KernelReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[KernelReport]:
        """The kernels on which a matching rule failed."""
        return [kernel for kernel in self.kernels if kernel.failures]

    def by_rule(self) -> dict[str, list[str]]:
        """Kernel names grouped by rule."""
        groups: dict[str, list[str]] = {}
        for kernel in self.kernels:
            groups.setdefault(kernel.rule or "(as is)", []).append(kernel.kernel)
        return groups


def record_key(rule: AnyRule, workload: Workload) -> str:
    """The key of a config in a mapping of tuned configs: rule, version and workload."""
    return f"{rule.name}@{rule.version}/{workload.key()}"


def apply_schedules(
    mod: tvm.IRModule,
    machine: Machine,
    configs: ConfigSource | None = None,
    *,
    rules: Sequence[AnyRule] | None = None,
) -> tuple[tvm.IRModule, ScheduleReport]:
    """Schedule every PrimFunc of a module for a machine.

    Args:
        mod: a lowered module (after FuseTIR); Relax functions in it are left alone.
        machine: what to schedule for.
        configs: tuned configs, by `record_key`, or a function of the rule and the workload; None uses the
        defaults.
        rules: the rules to try, in this order; all registered ones unless given.

    Returns:
        The new module and the report. A tuned config that fails is reported, and the default used; a rule that fails
        is reported, and the next matching one used.
    """
    start = time.perf_counter()
    chosen = tuple(rules) if rules is not None else all_rules()
    report = ScheduleReport()
    done: dict[int, list[tuple[PrimFunc, PrimFunc, KernelReport]]] = {}
    updates = {}
    for global_var, function in kernels_of(mod):
        name = str(global_var.name_hint)
        usable = chosen
        if function.attrs.get("tirx.is_scheduled"):
            usable = tuple(rule for rule in chosen if rule.reschedules)
        if not usable:
            report.kernels.append(KernelReport(name, None, Config(), "scheduled-before"))
            continue
        symbol = function.attrs.get("global_symbol")
        plain = function.without_attr("global_symbol")
        alike = done.setdefault(structural_hash(plain, map_free_vars=True), [])
        known = next((each for each in alike if structural_equal(each[0], plain, map_free_vars=True)), None)
        if known is not None:
            scheduled = known[1]
            report.kernels.append(_renamed(known[2], name))
        else:
            scheduled, entry = _schedule_kernel(name, function, machine, configs, usable)
            alike.append((plain, scheduled, entry))
            report.kernels.append(entry)
        updates[global_var] = _finished(scheduled, symbol, copy=report.kernels[-1].same_as is not None)
    result = tvm.IRModule({**dict(mod.functions_items()), **updates}, attrs=mod.attrs, global_infos=mod.global_infos)
    report.seconds = time.perf_counter() - start
    return result, report


def _renamed(entry: KernelReport, name: str) -> KernelReport:
    return KernelReport(name, entry.rule, entry.config, entry.source, entry.workload, entry.failures, entry.kernel)


def _finished(function: PrimFunc, symbol: object, *, copy: bool) -> PrimFunc:
    """Attributes restored; a repeated kernel is copied so that no variable is defined in two functions."""
    function = s_tir.renew_defs(function) if copy else function
    function = function.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
    return function.with_attr("global_symbol", symbol) if symbol is not None else function


def _schedule_kernel(
    name: str,
    function: PrimFunc,
    machine: Machine,
    configs: ConfigSource | None,
    rules: Sequence[AnyRule],
) -> tuple[PrimFunc, KernelReport]:
    kernel = Kernel.of(function)
    failures: list[RuleFailure] = []
    for rule in rules:
        workload = _matched(rule, kernel, machine, failures)
        if workload is None:
            continue
        for config, source in _configs_for(rule, workload, machine, configs, failures):
            scheduled = _tried(rule, kernel, workload, config, machine, failures, tuned=source == "record")
            if scheduled is not None:
                entry = KernelReport(name, rule.name, config, source, record_key(rule, workload), tuple(failures))
                return scheduled, entry
    return finish(function, machine), KernelReport(name, None, Config(), "as-is", failures=tuple(failures))


def _matched(rule: AnyRule, kernel: Kernel, machine: Machine, failures: list[RuleFailure]) -> Workload | None:
    """The rule's workload for a kernel; None also where it fails, with the reason among the failures."""
    try:
        return rule.match(kernel, machine)
    except Exception as error:
        failures.append(_unexpected(rule, error))
        return None


def _unexpected(rule: AnyRule, error: Exception) -> RuleFailure:
    """An unexpected exception of a rule. Raises RuleError where `STRICT` is set."""
    text = f"{type(error).__name__}: {error}"
    if os.environ.get(STRICT):
        raise RuleError(f"rule {rule.name!r} failed: {text}") from error
    return RuleFailure(rule.name, text)


def _tried(
    rule: AnyRule,
    kernel: Kernel,
    workload: Workload,
    config: Config,
    machine: Machine,
    failures: list[RuleFailure],
    *,
    tuned: bool,
) -> PrimFunc:
    """The scheduled kernel, or None: with the reason among the failures, unless the rule only declines a default."""
    try:
        return apply_rule(rule, kernel, workload, config, machine)
    except NotScheduledError as error:
        if tuned:
            failures.append(RuleFailure(rule.name, f"a tuned config does not apply: {error}"))
    except Exception as error:
        text = f"a tuned config does not apply: {type(error).__name__}: {error}"
        failures.append(RuleFailure(rule.name, text) if tuned else _unexpected(rule, error))
    return None


def _configs_for(
    rule: AnyRule,
    workload: Workload,
    machine: Machine,
    configs: ConfigSource | None,
    failures: list[RuleFailure],
) -> Iterator[tuple[Config, str]]:
    """The tuned config where there is one, then the default: a record that does not apply costs no more than itself."""
    tuned = None
    try:
        if callable(configs):
            tuned = configs(rule, workload)
        elif configs is not None:
            tuned = configs.get(record_key(rule, workload))
        if tuned is not None:
            rule.space(workload, machine).check(tuned)
    except Exception as error:
        failures.append(RuleFailure(rule.name, f"a tuned config does not apply: {type(error).__name__}: {error}"))
        tuned = None
    if tuned is not None:
        yield tuned, "record"
    yield rule.default(workload, machine), "default"


def matching_rule(kernel: Kernel, machine: Machine, rules: Sequence[AnyRule]) -> tuple[AnyRule, Workload] | None:
    """The first of the rules that serves a kernel, and its workload."""
    for rule in rules:
        workload = rule.match(kernel, machine)
        if workload is not None and not _declines(rule, workload, kernel, machine):
            return rule, workload
    return None


def _declines(rule: AnyRule, workload: Workload, kernel: Kernel, machine: Machine) -> bool:
    """Whether a rule leaves a kernel that it matches to the next one."""
    if not rule.may_decline:
        return False
    try:
        apply_rule(rule, kernel, workload, Config(), machine)
    except NotScheduledError:
        return True
    return False


def apply_rule(rule: AnyRule, kernel: Kernel, workload: Workload, config: Config, machine: Machine) -> PrimFunc:
    """Run one rule on one kernel: the PrimFunc it makes. Raises what the rule raises, and RuleError for a
    wrong answer."""
    result = rule.apply(kernel, workload, config, machine)
    if not isinstance(result, tirx.PrimFunc):
        raise RuleError(f"rule {rule.name!r} returned {type(result).__name__} instead of a PrimFunc")
    if len(result.params) != len(kernel.function.params):
        raise RuleError(f"rule {rule.name!r} changed the kernel's parameters")
    return rule.finish(result, machine)


def kernel_schedule(kernel: Kernel) -> s_tir.Schedule:
    """TVM's schedule of a kernel, for rules that transform it; the result is its `mod["main"]`."""
    function = kernel.function.with_attr("global_symbol", "main")
    return s_tir.Schedule(tvm.IRModule({"main": function}), debug_mask="none", error_render_level="fast")
