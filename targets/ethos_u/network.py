"""Searches the forms and Vela options of a network by Vela's cycle estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from schedules.ir.tvm_types import IRModule
from targets.errors import TargetError
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.partition import find, partitioned, prepared
from targets.ethos_u.report import estimate, processor_cycles
from targets.ethos_u.segments import Schedule, schedule
from targets.ethos_u.settings import (
    ARENA,
    OPTIMISE,
    PLACES,
    PLAIN,
    STRATEGIES,
    WEIGHTS,
    NetworkSettings,
    VelaOptions,
    forms_of,
    in_forms,
    step_name,
)
from targets.ethos_u.vela import Compiled, compile_graph, version
from targets.ethos_u.verification import agrees
from targets.ethos_u.view import View
from targets.measure import NetworkCost, NetworkMeasurer, Setting


class VelaMeasurer(NetworkMeasurer):
    """Vela's estimate of a network's cycles, plus an estimate of the processor's."""

    kind = "cycles"
    unit = "cycles"
    margin = 0.0

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.name = accelerator.measure_name

    def version(self) -> str:
        return version()

    def network(self, mod: IRModule, memory_limit: int | None = None) -> EthosUNetwork:
        return EthosUNetwork(mod, self.accelerator, memory_limit)


class EthosUNetwork:
    """Network of a quantized module before the phase "partition".

    Raises TargetError if no part of it runs on the accelerator. `memory_limit`: the given bytes of SRAM, otherwise the
    SRAM used only by the accelerator; None if unknown.
    """

    def __init__(self, mod: IRModule, accelerator: Accelerator, memory_limit: int | None = None) -> None:
        self.accelerator = accelerator
        self.memory_limit = memory_limit if memory_limit is not None else accelerator.dedicated_sram_kib * 1024 or None
        self._view = View(prepared(mod))
        partition = find(self._view, accelerator)
        self._steps = list(partition.steps.values())
        variables = list(partition.steps)
        partitioned(self._view, partition, self._view.results, accelerator, VelaOptions())
        if not partition.steps:
            reasons = "; ".join(sorted({f"{name}: {reason}" for name, reason in partition.refused}))
            raise TargetError(
                f"nothing of the model runs on the {accelerator.name}: {reasons or 'it has no quantized operator'}",
                "quantize the model for this target first (tensorwright.quantize)",
            )
        self._kept = {number: each for number, each in enumerate(variables) if each in partition.steps}
        self._compiled: dict[tuple[bytes, VelaOptions], Compiled] = {}
        self._names = [step_name(number, step) for number, step in enumerate(self._steps)]
        self.space: Mapping[str, tuple[Setting, ...]] = {
            OPTIMISE: STRATEGIES,
            ARENA: (0,) if memory_limit is None else (0, memory_limit),
            # A limit gives the size of the SRAM: then weights may be placed there, if both fit.
            WEIGHTS: PLACES[:1] if self.memory_limit is None else PLACES,
            **{
                self._names[number]: (PLAIN, *forms)
                for number in self._kept
                if (forms := forms_of(self._steps[number], self._steps))
            },
        }

    @property
    def options(self) -> Sequence[str]:
        """Vela's options."""
        return OPTIMISE, ARENA, WEIGHTS

    @property
    def groups(self) -> Sequence[tuple[str, ...]]:
        """The steps with forms, grouped by the tensor they read: if only one reshapes it, Vela copies it."""
        readers: dict[object, list[str]] = {}
        for name, step in zip(self._names, self._steps, strict=True):
            for each in step.inputs:
                if name in self.space and name not in readers.setdefault(each.variable, []):
                    readers[each.variable].append(name)
        return [tuple(names) for names in readers.values() if len(names) > 1]

    def cost(self, settings: Mapping[str, Setting]) -> NetworkCost:
        """Cycles of the accelerator and estimated cycles of the processor; bytes of SRAM."""
        plan, compiled = self._planned(settings)
        figures = estimate(compiled, self.accelerator, NetworkSettings.of(settings).vela)
        left = [value for variable, value in self._view.bindings if variable in plan.levels]
        beside = processor_cycles(left, list(plan.parts.values()))
        parts = {"accelerator": float(figures["cycles"]), "processor": float(beside)}
        parts["multiply-adds"] = float(sum(step.macs for part in plan.parts.values() for step in part.steps))
        parts |= {f"{name} bytes": float(size) for name, size in figures["bytes_accessed"].items() if size}
        return NetworkCost(figures["cycles"] + beside, figures["peak_bytes"]["sram"], parts)

    def computes_the_same(self, settings: Mapping[str, Setting]) -> bool:
        """True if each segment's commands compute its graph, in the simulator; not available for a U85."""
        if self.accelerator.is_u85:
            return True
        plan, compiled = self._planned(settings)
        return all(agrees(part, each.program) for part, each in zip(plan.parts.values(), compiled, strict=True))

    def _planned(self, settings: Mapping[str, Setting]) -> tuple[Schedule, list[Compiled]]:
        chosen = NetworkSettings.of(settings)
        written = in_forms(self._steps, chosen.forms)
        steps = {variable: written[number] for number, variable in self._kept.items()}
        plan = schedule(self._view, steps, self._view.results)
        return plan, [self._run(part.tosa, chosen.vela) for part in plan.parts.values()]

    def _run(self, tosa: bytes, options: VelaOptions) -> Compiled:
        key = tosa, options
        if key not in self._compiled:
            if len(self._compiled) > _KEPT:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[key] = compile_graph(tosa, self.accelerator, options)
        return self._compiled[key]


_KEPT = 8  # compiled segments
