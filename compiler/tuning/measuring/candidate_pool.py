"""Interface of a pool to a tuning session, whether candidates are timed or their cost is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from compiler.tuning.measuring.messages import Effort, KernelTask, Outcome
from compiler.tuning.measuring.pool import Emit, Trial
from targets.measure import Measure


class CandidatePool(Protocol):
    """Trials in, outcomes out: `MeasurementPool` and `EstimatingPool`.

    Attributes:
        measure: what the numbers of the outcomes are.
        margin: the share by which a candidate must beat the default, beside the spread of its samples.
        margin_of_alternatives: the same for another algorithm.
        serial: times are of one core.
        memory: where kernels find their arguments, as `Target.memory`.
    """

    @property
    def measure(self) -> Measure: ...

    @property
    def margin(self) -> float: ...

    @property
    def margin_of_alternatives(self) -> float: ...

    @property
    def serial(self) -> bool: ...

    @property
    def memory(self) -> str: ...

    def define(self, task: KernelTask) -> None: ...

    def prepare(self, keys: Sequence[str]) -> dict[str, str]: ...

    def trials(self, trials: Sequence[Trial], emit: Emit) -> list[Outcome]: ...

    def compare(self, key: str, candidates: Sequence[Outcome], effort: Effort, rounds: int) -> list[Outcome]: ...

    def processor_seconds(self) -> dict[str, float]: ...

    def kill(self) -> None: ...
