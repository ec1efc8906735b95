"""Schedules every kernel of a lowered module and reports the rule used for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from schedules.config import Config
from schedules.errors import ConfigError, NotScheduledError, RuleError, ScheduleError
from schedules.instructions.finish import finish
from schedules.ir.stages import Kernel, kernels_of
from schedules.ir.tir import PrimFunc, s_tir, structural_equal, structural_hash, tirx, tvm
from schedules.machine import Machine
from schedules.rule import AnyRule, Workload
from schedules.selection.registry import rules as all_rules

ConfigSource = Mapping[str, Config] | Callable[[AnyRule, Any], Config | None]


@dataclass(frozen=True)
class RuleFailure:
    """A tuned config that a rule does not accept."""

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
    """One report per kernel, in the order of the module, and the total time in seconds."""

    kernels: list[KernelReport] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def failures(self) -> list[KernelReport]:
        """The kernels whose tuned configs do not apply."""
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
    mod: tvm.IRModule, machine: Machine, configs: ConfigSource | None = None, *, rules: Sequence[AnyRule] | None = None
) -> tuple[tvm.IRModule, ScheduleReport]:
    """Schedule every PrimFunc of a module for a machine.

    Args:
        mod: a lowered module (after FuseTIR); its Relax functions are not changed.
        machine: the machine to schedule for.
        configs: tuned configs, by `record_key`, or a function of the rule and the workload; None uses the defaults.
        rules: the rules to try, in this order; by default all registered ones.

    Returns:
        The new module and the report. A tuned config that a rule declines is reported, and the default used.

    Raises:
        RuleError: a rule raised an exception other than NotScheduledError, which passes a kernel to the next rule;
        names
            the rule and the kernel.
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
            report.kernels.append(replace(known[2], kernel=name, same_as=known[2].kernel))
        else:
            scheduled, entry = _schedule_kernel(name, function, machine, configs, usable)
            alike.append((plain, scheduled, entry))
            report.kernels.append(entry)
        updates[global_var] = _finished(scheduled, symbol, copy=report.kernels[-1].same_as is not None)
    result = tvm.IRModule({**dict(mod.functions_items()), **updates}, attrs=mod.attrs, global_infos=mod.global_infos)
    report.seconds = time.perf_counter() - start
    return result, report


def _finished(function: PrimFunc, symbol: object, *, copy: bool) -> PrimFunc:
    """Restore attributes; a repeated kernel is copied so that no variable is defined in two functions."""
    function = s_tir.renew_defs(function) if copy else function
    function = function.without_attr("global_symbol").with_attr("tirx.is_scheduled", True)
    return function.with_attr("global_symbol", symbol) if symbol is not None else function


def _schedule_kernel(
    name: str, function: PrimFunc, machine: Machine, configs: ConfigSource | None, rules: Sequence[AnyRule]
) -> tuple[PrimFunc, KernelReport]:
    kernel = Kernel.of(function)
    failures: list[RuleFailure] = []
    for rule in rules:
        with _named_failures(rule, name):
            workload = rule.match(kernel, machine)
            if workload is None:
                continue
            for config, source in _configs_for(rule, workload, machine, configs, failures):
                try:
                    scheduled = apply_rule(rule, kernel, workload, config, machine)
                except NotScheduledError as error:
                    if source == "record":
                        failures.append(_not_applied(rule, error))
                    continue
                entry = KernelReport(name, rule.name, config, source, record_key(rule, workload), tuple(failures))
                return scheduled, entry
    return finish(function, machine), KernelReport(name, None, Config(), "as-is", failures=tuple(failures))


@contextmanager
def _named_failures(rule: AnyRule, kernel: str) -> Iterator[None]:
    """Turn any exception of a rule into a RuleError that names it: falling back to another rule would make the module
    depend on, say, a machine's free memory."""
    try:
        yield
    except Exception as error:
        raise RuleError(f"rule {rule.name!r} failed on kernel {kernel!r}: {type(error).__name__}: {error}") from error


def _not_applied(rule: AnyRule, error: ScheduleError) -> RuleFailure:
    return RuleFailure(rule.name, f"a tuned config does not apply: {type(error).__name__}: {error}")


def _configs_for(
    rule: AnyRule, workload: Workload, machine: Machine, configs: ConfigSource | None, failures: list[RuleFailure]
) -> Iterator[tuple[Config, str]]:
    """The tuned config if there is one, then the default: a record that does not apply only loses itself."""
    if callable(configs):
        tuned = configs(rule, workload)
    else:
        tuned = None if configs is None else configs.get(record_key(rule, workload))
    if tuned is not None:
        try:
            rule.space(workload, machine).check(tuned)
        except ConfigError as error:
            failures.append(_not_applied(rule, error))
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
    """True if a rule passes a kernel that it matches to the next one."""
    if not rule.may_decline:
        return False
    try:
        apply_rule(rule, kernel, workload, Config(), machine)
    except NotScheduledError:
        return True
    return False


def apply_rule(rule: AnyRule, kernel: Kernel, workload: Workload, config: Config, machine: Machine) -> PrimFunc:
    """Run one rule on one kernel and return its PrimFunc. Raises the rule's exceptions, or RuleError."""
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
