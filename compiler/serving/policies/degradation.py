"""Switching to cheaper variants under overload, and back: with hysteresis, and without a clock."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class DegradationOptions:
    """Options of degradation.

    Attributes:
        degrade_at_ms: of work waiting per core: above it answers degrade.
        restore_at_ms: of work waiting per core: below it they are restored.
        degrade_after: requests in a row that must find more work than that before answers degrade by one variant.
        restore_after: requests in a row that must find less before they are restored by one.
    """

    degrade_at_ms: float = 100.0
    restore_at_ms: float = 25.0
    degrade_after: int = 4
    restore_after: int = 32

    def __post_init__(self) -> None:
        """Raises OptionError for numbers without hysteresis, or below 1."""
        if not 0 <= self.restore_at_ms < self.degrade_at_ms:
            raise OptionError(
                f"restore_at_ms={self.restore_at_ms} and degrade_at_ms={self.degrade_at_ms}",
                "the first must be less, so that answers do not change with each request",
            )
        if min(self.degrade_after, self.restore_after) < 1:
            raise OptionError(f"degrade_after={self.degrade_after}, restore_after={self.restore_after}", "1 at least")


class Degradation:
    """Degree of degradation: 0 is none. Depends on the loads it is shown and on nothing else."""

    def __init__(self, options: DegradationOptions, levels: int) -> None:
        """`levels`: how far answers can be degraded."""
        self._options, self._levels = options, levels
        self._above = self._below = 0
        self.level = 0

    def observe(self, waiting_ms: float) -> int:
        """The level for a request that finds so much work per core before it."""
        options = self._options
        self._above = self._above + 1 if waiting_ms > options.degrade_at_ms else 0
        self._below = self._below + 1 if waiting_ms < options.restore_at_ms else 0
        if self._above >= options.degrade_after and self.level < self._levels:
            self.level, self._above = self.level + 1, 0
        elif self._below >= options.restore_after and self.level:
            self.level, self._below = self.level - 1, 0
        return self.level
