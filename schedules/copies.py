"""Moves without arithmetic, in runs: concatenation, padding, slices, gathering of rows."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class Copies(GeneralRule):
    """Serves kernels that only move values, in vectors."""

    name: ClassVar[str] = "copy"

    def serves(self, form: Form) -> bool:
        return form is Form.COPY
