"""The common part of targets whose code LLVM generates.

Servers of a processor with many cores: their number of cores, and their total memory bandwidth.

A preset's `memory_rate` is the bandwidth that a few cores reach. If measured, `core_memory_rate` is the rate of a
single core, and `chiplet` the rate of cores that share a link to memory: on Zen 4 25 to 27 GB/s with one core and 46
with two, at 3.65 GHz (Zen 4 server, reads of 1 GiB); on Skylake and Cascade Lake 12 GB/s with one thread by STREAM, and
199 stated for two sockets (https://www.anandtech.com/show/11544). `socket` has the most cores of a processor of that
kind, and the rate of all its memory channels: 0.7 of the vendor's stated peak (like the presets' own rates) at 3 GHz.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schedules.instructions.llvm_options import LLVM_OPTIONS
from schedules.ir.numbers import ceil_div
from schedules.machine import Machine
from targets.target import Target

if TYPE_CHECKING:
    import tvm

    from targets.measure import Measurer


@dataclass(frozen=True)
class LlvmTarget(Target):
    """A processor that LLVM knows as `mcpu`.

    Attributes:
        mcpu: LLVM's name of the processor model.
        features: features that the built code may use, sorted.
        attributes: signed features on top of the model ("+avx512bf16", "-sve").
    """

    name: str
    description: str
    machine: Machine
    mcpu: str
    features: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    most_cores: int | None = None

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

    def tvm_options(self) -> dict[str, object]:
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

        return tvm.target.Target(self.tvm_options())


_FEW = 4
_SOCKETS = 2


def most_cores(entry: Mapping[str, Any]) -> int | None:
    """The most cores of a preset's machine: of two sockets, or of a board; None if unknown."""
    if "socket" in entry:
        return _SOCKETS * int(entry["socket"]["cores"])
    return entry["machine"].get("cores")


def memory_rate(entry: Mapping[str, Any], cores: int) -> dict[str, float]:
    """`memory_rate` of a preset's machine with a number of cores, as a keyword of `Machine`."""
    few = entry["machine"].get("memory_rate")
    if few is None or "socket" not in entry:
        return {} if few is None else {"memory_rate": few}
    core, chiplet, socket = entry.get("core_memory_rate"), entry.get("chiplet"), entry["socket"]
    limits = [few * max(cores, _FEW) / _FEW if core is None else core * cores]
    if chiplet is not None:
        limits.append(chiplet["memory_rate"] * max(1.0, cores / chiplet["cores"]))
    limits.append(max(few, ceil_div(cores, socket["cores"]) * socket["memory_rate"]))
    return {"memory_rate": min(limits)}
