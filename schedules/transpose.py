"""Kernels that read along one axis and write along another, in square blocks that are turned in registers."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class TransposeBlocks(GeneralRule):
    """Serves kernels that transpose, whatever they compute of the elements."""

    name: ClassVar[str] = "transpose"

    def serves(self, form: Form) -> bool:
        return form is Form.TRANSPOSE
