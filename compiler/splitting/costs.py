"""Costs of both sides of a cut: estimated for each target, and measured on this machine where it can be."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import targets
from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel
from compiler.inspection.cost_estimate import estimate_costs
from compiler.splitting.cuts import Cut
from compiler.support.roofline import Roofline


@dataclass(frozen=True)
class SideCosts:
    """Seconds that a target is estimated to take for the bindings of `main` before each position.

    Attributes:
        before: by position of a cut.
        whole: of the whole model.
    """

    before: dict[int, float]
    whole: float

    def after(self, cut: Cut) -> float:
        """Cost of the part behind a cut."""
        return self.whole - self.before[cut.position]


def estimated_costs(
    model: ImportedModel, target: targets.Target, cuts: Sequence[Cut], places: dict[str, int], size: int
) -> SideCosts:
    """The least times of kernels (roofline) by the place of the node that most of a kernel's work is for.

    Args:
        places: the position after which a node is computed.
        size: size of all symbolic dimensions.
    """
    roofline = Roofline.of(target.machine, measured=False)
    symbols = {each: size for spec in model.inputs for each in spec.shape if isinstance(each, str)}
    by_position: dict[int, float] = defaultdict(float)
    for cost in estimate_costs(model, target, roofline, symbols):
        position = next((places[node] for node in cost.nodes if node in places), 0)
        by_position[position] += cost.seconds
    before = {
        cut.position: sum(seconds for position, seconds in by_position.items() if position <= cut.position)
        for cut in cuts
    }
    return SideCosts(before, sum(by_position.values()))


def node_places(model: ImportedModel) -> dict[str, int]:
    """The number of bindings up to and with the one that computes a node."""
    bindings = [binding for block in model.mod["main"].body.blocks for binding in block.bindings]
    places: dict[str, int] = {}
    for position, binding in enumerate(bindings):
        for node in model.nodes.get(str(binding.var.name), ()):
            places[node.name] = position + 1
    return places


# Bandwidths and times as people write them.

_RATE = re.compile(r"([0-9]*\.?[0-9]+) *([kKMG]?)(bit|b|bps|B|byte)(?:/s|ps)?")
_TIME = re.compile(r"([0-9]*\.?[0-9]+) *(s|ms|us)")
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def bits_per_second(text: str) -> float:
    """A bandwidth: "10Mbit", "1 Gbit/s", "2MB" (bytes). Raises OptionError for another text."""
    found = _RATE.fullmatch(text.strip())
    if found is None or not float(found[1]):
        raise OptionError(f"{text!r} is not a bandwidth", "write it as 10Mbit, 500kbit, 1Gbit, or in bytes as 2MB")
    return float(found[1]) * _PREFIX[found[2]] * (8 if found[3] in ("B", "byte") else 1)


def seconds(text: str) -> float:
    """A time: "20ms", "0.1s". Raises OptionError for another text."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise OptionError(f"{text!r} is not a time", "write it as 20ms or 0.1s")
    return float(found[1]) * _SECONDS[found[2]]
