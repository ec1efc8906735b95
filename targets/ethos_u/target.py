"""The target: this machine's processor in the role of the Cortex-M, together with an accelerator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.errors import ToolchainMissing
from targets.ethos_u.accelerators import accelerators
from targets.target import AcceleratedTarget, Target

if TYPE_CHECKING:
    from schedules.ir.tvm_types import IRModule
    from targets.measure import Measurer

_PRESETS_FILE = Path(__file__).with_name("presets.json")


class EthosU(AcceleratedTarget):
    """Integer operators on the accelerator, the rest on a processor."""

    quantized_everywhere = True
    times_kernels = False

    def __init__(self, name: str, description: str, accelerator: str, cores: int | None = None) -> None:
        from targets.registry import get

        super().__init__(get("host", cores=cores))
        self.name = name
        self.description = f"{description}; here simulated, with this machine as the processor"
        self.accelerator = accelerators()[accelerator]
        self.device = accelerator

    @property
    def integer_operators(self) -> frozenset[str]:  # type: ignore[override]
        from targets.ethos_u.operators.registry import names

        return names()

    def partition_passes(self) -> Sequence[Any]:
        def claim_for_ethos_u(mod: IRModule, context: object) -> IRModule:
            from targets.ethos_u.partition import claim

            return claim(mod, context, self.accelerator)

        return (claim_for_ethos_u,)

    def accelerator_description(self) -> dict[str, Any]:
        each = self.accelerator
        return {"accelerator": each.name, "cores": each.cores, "system": each.system, "memory": each.memory}

    def measurer(self) -> Measurer:
        from targets.ethos_u.network import VelaMeasurer

        return VelaMeasurer(self.accelerator)

    def load_runtime(self) -> None:
        from targets.ethos_u.runtime import register
        from targets.ethos_u.vela import require

        if self.accelerator.is_u85:
            require()
        register()

    def c_sources(self, title: str, details: Mapping[str, Any], parameters: Iterable[Any]) -> dict[str, str]:
        from targets.ethos_u.microcontroller import sources

        return sources(title, details["partition"], parameters)

    def toolchain(self) -> str:
        from targets.ethos_u.vela import require

        require()
        return f"{super().toolchain()}, vela"

    def how_it_runs(self) -> str:
        from targets.ethos_u.vela import require

        try:
            require()
        except ToolchainMissing as error:
            return f"not yet: {error.hint}"
        if self.accelerator.is_u85:
            return "simulated: what the accelerator computes as a TOSA graph, not Vela's commands"
        return "simulated: the accelerator's command stream, with this machine as the processor"


def presets() -> dict[str, Callable[[int | None], Target]]:
    """Named targets, as functions of the core count."""
    data = json.loads(_PRESETS_FILE.read_text(encoding="utf-8"))
    return {name: partial(EthosU, name, entry["description"], entry["accelerator"]) for name, entry in data.items()}
