"""Errors of the schedules. The driver translates these for the user; third parties may catch them directly."""

from __future__ import annotations


class ScheduleError(Exception):
    """Base of all errors of this package."""


class ConfigError(ScheduleError):
    """A config names an unknown knob or holds a value outside its space."""


class RuleError(ScheduleError):
    """A rule is invalid: it has no name, shares one with another rule, or returned something unusable."""


class NotScheduledError(ScheduleError):
    """A rule cannot serve this kernel after all; the next matching rule is tried. The message gives the reason."""
