"""What the rules for products share whose constant operand is packed in a form of its own."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

from schedules.anchor import FusedKernel
from schedules.config import Config, ConfigSpace
from schedules.errors import NotScheduledError
from schedules.kernel import Kernel
from schedules.machine import Machine
from schedules.matmul_code import MatmulWriter
from schedules.matmul_tiling import best_tile, fits, tile_choices
from schedules.rule import ScheduleRule


class MatmulOfParts(ScheduleRule):
    """A product that is found by its operands and written by a writer of its own. The knob: the rows of the tile."""

    priority: ClassVar[int] = 60

    @abstractmethod
    def parts(self, kernel: Kernel) -> Any | None:
        """The operands, with the `MatmulForm` as `form`; None for kernels of others."""

    @abstractmethod
    def writer(self, parts: Any, fused: FusedKernel, machine: Machine, rows: int) -> MatmulWriter:
        """What writes the loops."""

    def space(self, workload: Any, machine: Machine) -> ConfigSpace:
        vectors = max(1, workload.width // machine.lanes("float32"))
        rows = {row for row, _ in tile_choices(machine, vectors) if row == 1 or fits(row, vectors, machine)}
        return ConfigSpace({"rows": tuple(sorted(rows))})

    def default(self, workload: Any, machine: Machine) -> Config:
        return Config.of(rows=best_tile(workload, machine)[0])

    def apply(self, schedule: Any, workload: Any, config: Config, machine: Machine) -> Any:
        parts = self.parts(schedule.kernel)
        if parts is None:
            raise NotScheduledError("the stage of the product is missing")
        fused = FusedKernel(schedule.kernel, [parts.form.stage])
        return self.writer(parts, fused, machine, config.integer("rows")).function()
