"""Measures of kernels: timed on a device, or computed if there is none.

A target without an available device has a `Measurer`: a model of its processor, or its compiler's own estimate. Numbers
of different measures are never compared: each tuning record names its measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from targets.errors import TargetError

if TYPE_CHECKING:
    from schedules.ir.tvm_types import IRModule, PrimFunc

Setting = bool | int | str
MeasureKind = Literal["timed", "cycles", "modelled"]
Unit = Literal["s", "cycles"]


@dataclass(frozen=True)
class Measure:
    """Meaning of a number of a tuning record.

    Attributes:
        kind: "timed": by a clock, while the kernel ran; "cycles": counted by the device's own compiler or simulator;
            "modelled": computed from the generated code by a model of the processor.
        name: name of the measure; only numbers with the same name may be compared: "timed", "llvm-mca+cache
        cortex-a76".
        unit: unit of its numbers.
        version: version of the tool that counts or models; numbers of different versions are not compared.
    """

    kind: MeasureKind = "timed"
    name: str = "timed"
    unit: Unit = "s"
    version: str = ""

    @property
    def deterministic(self) -> bool:
        """True if the same kernel always gets the same number, even on a busy machine."""
        return self.kind != "timed"

    @property
    def text(self) -> str:
        """Kind and name, for people."""
        return self.kind if self.kind == self.name else f"{self.kind}: {self.name}"

    def __str__(self) -> str:
        return f"{self.name} ({self.version})" if self.version else self.name


TIMED = Measure()


@dataclass(frozen=True)
class Estimate:
    """The cost of one kernel call in the unit of its measure, and a breakdown for people."""

    cost: float
    parts: Mapping[str, float] = field(default_factory=dict)


class ScheduledKernel(Protocol):
    """A candidate: a kernel scheduled with one config.

    Attributes:
        function: the scheduled PrimFunc, of static shapes.
        constants: the positions of its parameters that are weights.
        constant_bytes: bytes of weights that the whole model reads between two calls of the kernel.
    """

    @property
    def function(self) -> PrimFunc: ...

    @property
    def constants(self) -> frozenset[int]: ...

    @property
    def constant_bytes(self) -> int: ...

    def build(self) -> Any:
        """TVM's module of machine code or source (`inspect_source`), by the project's lowering."""


class Measurer(ABC):
    """Computes the cost of kernels without a device: deterministic, and safe to use in parallel processes.

    Attributes:
        kind, name, unit: see `Measure`.
        margin: the fraction by which a candidate must beat the default to replace it: the model's error, as determined
            where times can be measured.
        margin_of_alternatives: the same for another algorithm, whose code has less in common with the default's.
    """

    kind: MeasureKind
    name: str
    unit: Unit = "s"
    margin: float
    margin_of_alternatives: float = 0.4

    @abstractmethod
    def version(self) -> str:
        """The version of the tool that the numbers depend on. Raises ToolchainMissing, naming the package."""

    def measure(self) -> Measure:
        """Measure of the numbers. Raises ToolchainMissing, as `version` does."""
        return Measure(self.kind, self.name, self.unit, self.version())

    def fits(self, measure: Measure) -> bool:
        """True if a record's numbers are of this measure, by any version of its tool."""
        return (measure.kind, measure.name, measure.unit) == (self.kind, self.name, self.unit)

    @abstractmethod
    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        """The cost of one call of a kernel. An exception rejects the candidate, like a build error."""


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one run of a whole network.

    Attributes:
        cost: cost in the unit of the measure.
        memory: peak bytes of working memory.
        parts: breakdown of the cost, and other figures, for people.
    """

    cost: float
    memory: int
    parts: Mapping[str, float] = field(default_factory=dict)


class Network(Protocol):
    """A model whose settings are chosen together, since the cost of a layer depends on its neighbors.

    Attributes:
        space: the values of each setting, by name; the first is the default.
        memory_limit: limit on the bytes of working memory; None for no limit.
        options: settings of the target's compiler, which should be varied together and first.
        groups: other settings that should be varied together: those of layers that read the same tensor.
    """

    @property
    def memory_limit(self) -> int | None: ...

    @property
    def space(self) -> Mapping[str, tuple[Setting, ...]]: ...

    @property
    def options(self) -> Sequence[str]: ...

    @property
    def groups(self) -> Sequence[tuple[str, ...]]: ...

    def cost(self, settings: Mapping[str, Setting]) -> NetworkCost:
        """Cost of a run with these settings, with the others at their defaults. Raises TargetError if the target's
        compiler rejects them, and ValueError if there is no such setting or value."""

    def computes_the_same(self, settings: Mapping[str, Setting]) -> bool:
        """True if the network with these settings computes the expected bytes, as far as can be checked."""


class NetworkMeasurer(Measurer):
    """A measurer of whole networks, in which kernels have no cost of their own."""

    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        raise TargetError(f"{self.name} measures whole networks, not single kernels")

    @abstractmethod
    def network(self, mod: IRModule, memory_limit: int | None = None) -> Network:
        """The network of a module as seen by the target's partition passes. Raises TargetError if no part of it runs on
        the accelerator. `memory_limit`: limit on the bytes of working memory; None: the target's own limit."""
