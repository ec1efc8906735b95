"""`Parts`: what a policy's builder is given to make services with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compiler.serving.metrics import Observer
from compiler.serving.service import Service


@dataclass(frozen=True)
class Parts:
    """Attributes:
    observer: what is told what policies decide.
    make: a batched service of another module, proven by its stored example, under the same model's name: (the module's
        file, the name of the variant in answers).
    """

    observer: Observer
    make: Callable[[Path, str], Service]
