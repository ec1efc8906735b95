"""The common part of targets whose code LLVM generates."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from schedules.instructions.llvm_options import LLVM_OPTIONS
from targets.target import Target

if TYPE_CHECKING:
    import tvm

    from targets.measure import Measurer


class LlvmTarget(Target):
    """A processor that LLVM knows as `mcpu`.

    Attributes:
        mcpu: LLVM's name of the processor model.
        features: what the built code may use, sorted.
        attributes: signed features on top of the model ("+avx512bf16", "-sve").
    """

    mcpu: str
    features: tuple[str, ...]
    attributes: tuple[str, ...]

    @property
    @abstractmethod
    def triple(self) -> str:
        """LLVM's name of the platform."""

    @property
    def required_features(self) -> tuple[str, ...]:
        return self.features

    @property
    def builds_in_parts(self) -> bool:
        return True

    def engine_options(self) -> dict[str, object]:
        options: dict[str, Any] = {
            "kind": "llvm",
            "mtriple": self.triple,
            "mcpu": self.mcpu,
            "num-cores": self.machine.cores,
            "cl-opt": list(LLVM_OPTIONS),
        }
        return {**options, "mattr": list(self.attributes)} if self.attributes else options

    def measurer(self) -> Measurer | None:
        from targets.cpu.modelled.measurer import PipelineMeasurer, processors

        return PipelineMeasurer(self.triple, self.mcpu, self.machine) if self.mcpu in processors() else None

    def tvm_target(self) -> tvm.target.Target:
        from schedules.ir.tir import tvm

        return tvm.target.Target(self.engine_options())
