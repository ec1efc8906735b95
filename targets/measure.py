"""Measures of kernels: timed on a device, or computed where there is none.

A target without a device at hand has a `Measurer`: a model of its processor, or its compiler's own estimate. What one
measure gives is never compared with what another does: each tuning record names its measure.
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
        kind: "timed": by a clock, where the kernel ran; "cycles": counted by the device's own compiler or simulator;
            "modelled": computed from the generated code by a model of the processor.
        name: of the measure, the same for all numbers that may be used together: "timed", "llvm-mca+cache cortex-a76".
        unit: unit of its numbers.
        version: version of the tool that counts or models; numbers of two versions are not compared with each other.
    """

    kind: MeasureKind = "timed"
    name: str = "timed"
    unit: Unit = "s"
    version: str = ""

    @property
    def deterministic(self) -> bool:
        """True if the same kernel always gets the same number, on a busy machine as well."""
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
    """The cost of one call of a kernel in the unit of its measure, and its parts, for people."""

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
        margin: the share by which a candidate must beat the default to replace it: the error of the model itself, as
            proven where times can be measured.
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
        """True if numbers of a record are of this measure, by any version of its tool."""
        return (measure.kind, measure.name, measure.unit) == (self.kind, self.name, self.unit)

    @abstractmethod
    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        """The cost of one call of a kernel. What it raises costs the candidate, as a build error does."""


@dataclass(frozen=True)
class NetworkCost:
    """Cost of one run of a whole network.

    Attributes:
        cost: in the unit of the measure.
        memory: bytes of working memory at its peak.
        parts: what the cost is made of, and other figures, for people.
    """

    cost: float
    memory: int
    parts: Mapping[str, float] = field(default_factory=dict)


class Network(Protocol):
    """A model whose settings are chosen together, since what one layer costs depends on its neighbors.

    Attributes:
        space: the values of each setting, by name; the first is the default.
        memory_limit: bytes of working memory to keep to; None for no limit.
        options: those of the target's compiler, which are worth changing at once and first.
        groups: other settings that are, those of layers that read one tensor.
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
        """Cost of a run with these settings, others being at their defaults.

        Raises:
            TargetError: the target's compiler refuses them.
            ValueError: there is no such setting or value.
        """

    def computes_the_same(self, settings: Mapping[str, Setting]) -> bool:
        """True if the network with these settings gives the bytes that it has to give, as far as can be checked."""


class NetworkMeasurer(Measurer):
    """A measurer of whole networks, where kernels have no cost of their own."""

    def estimate(self, kernel: ScheduledKernel) -> Estimate:
        raise TargetError(f"{self.name} measures whole networks, and no kernel by itself")

    @abstractmethod
    def network(self, mod: IRModule, memory_limit: int | None = None) -> Network:
        """The network of a module as the target's partition passes take it.

        Args:
            memory_limit: bytes of working memory that the settings are to keep to; the target's own limit when None.

        Raises:
            TargetError: nothing of it runs on the accelerator.
        """
