"""Chains of arithmetic on elements that lie side by side."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class Elementwise(GeneralRule):
    """Serves kernels that compute each element of its own, in vectors."""

    name: ClassVar[str] = "elementwise"

    def serves(self, form: Form) -> bool:
        return form is Form.ELEMENTWISE
