"""`Parts`: dependencies of policies' builders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compiler.serving.metrics import Observer
from compiler.serving.service import Service


@dataclass(frozen=True)
class Parts:
    """Attributes:
    observer: observer of policy decisions.
    make: creates a batched service of another module under the same model's name, with a verified stored example:
        (the module's file, the name of the variant in answers).
    """

    observer: Observer
    make: Callable[[Path, str], Service]
