"""Sums, products and extrema in vectors: a result a lane, or one result in the lanes of several accumulators."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class Reduce(GeneralRule):
    """Serves kernels that reduce in vectors, whatever else they do in vectors."""

    name: ClassVar[str] = "reduction"

    def serves(self, form: Form) -> bool:
        return form is Form.REDUCTION
