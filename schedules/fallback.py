"""The rule that serves every kernel no other rule wants: what holds loops over single elements or opaque statements."""

from __future__ import annotations

from typing import ClassVar

from schedules.stages.plan import Form
from schedules.stages.rules import GeneralRule


class Fallback(GeneralRule):
    """Serves any kernel with at least one simple stage."""

    name: ClassVar[str] = "fallback"
    priority: ClassVar[int] = 0
    version: ClassVar[int] = 2  # kernels in vectors went to rules of their own

    def serves(self, form: Form) -> bool:
        return True
