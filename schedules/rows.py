"""Kernels whose stages run together, row by row: softmax, the norms, quantization by the range of a row."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class Rows(GeneralRule):
    """Serves kernels whose stages share their rows, each of which runs in vectors."""

    name: ClassVar[str] = "rows"

    def serves(self, form: Form) -> bool:
        return form is Form.ROWS
