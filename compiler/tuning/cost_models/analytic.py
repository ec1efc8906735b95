"""The estimated cost of a config, from its rule; configs without an estimate are ranked by measuring."""

from __future__ import annotations

from schedules.config import Config
from schedules.estimate import Estimate
from schedules.machine import Machine
from schedules.selection.registry import rules


def estimate(rule: str, workload: object, config: Config, machine: Machine) -> Estimate | None:
    """The estimate for a config; None where the rule has none, or the config lacks the rule's knobs."""
    found = next((each for each in rules() if each.name == rule), None)
    if found is None:
        return None
    try:
        return found.estimate(workload, config, machine)
    except KeyError:
        return None


__all__ = ["Estimate", "estimate"]
