"""Choices of `tune` for a whole network: forms of steps, and Vela's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from targets.errors import TargetError
from targets.ethos_u.accelerators import Accelerator
from targets.ethos_u.steps import Step
from targets.measure import Setting

PLAIN = "plain"
OPTIMISE = "vela optimise"
ARENA = "vela arena"
WEIGHTS = "weights"
STRATEGIES = ("Performance", "Size")
PLACES = ("in place", "in SRAM")
"""Placement of weights: as in the accelerator's memory mode, or copied to SRAM once, when the device starts."""


@dataclass(frozen=True)
class VelaOptions:
    """Options of Vela that change its schedule.

    Attributes:
        optimise: "Performance", or "Size" for the least memory.
        arena: target size of the SRAM, in bytes; 0 for the memory mode's own.
        weights_in_sram: whether the weights are there, too.
    """

    optimise: str = STRATEGIES[0]
    arena: int = 0
    weights_in_sram: bool = False

    def memory(self, accelerator: Accelerator) -> str:
        """Vela's memory mode."""
        return _ALL_IN_SRAM if self.weights_in_sram else accelerator.memory


@dataclass(frozen=True)
class NetworkSettings:
    """Vela's options, and the form of each step that does not use the plain one, by `step_name`."""

    vela: VelaOptions = field(default_factory=VelaOptions)
    forms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Setting]) -> NetworkSettings:
        """Create from the settings of a tuning record. Raises TargetError for values that `tune` never records."""
        optimise, arena = settings.get(OPTIMISE, STRATEGIES[0]), settings.get(ARENA, 0)
        if optimise not in STRATEGIES:
            raise TargetError(f"tuning record: {OPTIMISE} is {optimise!r}; Vela has {' and '.join(STRATEGIES)}", _AGAIN)
        if not isinstance(arena, int) or isinstance(arena, bool) or not 0 <= arena < 1 << 40:
            raise TargetError(f"tuning record: {ARENA} is {arena!r}, which is not a number of bytes", _AGAIN)
        place = settings.get(WEIGHTS, PLACES[0])
        if place not in PLACES:
            raise TargetError(f"tuning record: {WEIGHTS} are {place!r}, which is not {' or '.join(PLACES)}", _AGAIN)
        others = (OPTIMISE, ARENA, WEIGHTS)
        forms = {name: str(form) for name, form in settings.items() if name not in others and form != PLAIN}
        return cls(VelaOptions(str(optimise), arena, place == PLACES[1]), forms)


_ALL_IN_SRAM = "Sram_Only"
_AGAIN = "tune the model again, or leave the record out (records=False)"


def step_name(number: int, step: Step) -> str:
    """Name of a setting: position of the step in the network, its kind, and its sizes."""
    return f"{number} {step.operator} {step.sizes}"


def in_forms(steps: Sequence[Step], forms: Mapping[str, str]) -> list[Step]:
    """The steps in the chosen forms. Raises TargetError if there is no such step, or it has no such form."""
    names = {step_name(number, step): number for number, step in enumerate(steps)}
    written = list(steps)
    for name, form in forms.items():
        if name not in names:
            raise TargetError(f"tuning record: the network has no step {name!r}", _AGAIN)
        step = steps[names[name]]
        if form not in forms_of(step, steps):
            raise TargetError(f"tuning record: step {name!r} cannot be written as {form!r}", _AGAIN)
        written[names[name]] = step.in_form(form)
    return written


def forms_of(step: Step, steps: Sequence[Step]) -> list[str]:
    """The forms that a step can use among these: a form arranged by the processor needs an input that only it reads and
    that the processor computes."""
    free = all(other.output.variable != step.inputs[0].variable for other in steps) and (
        sum(each.variable == step.inputs[0].variable for other in steps for each in other.inputs) == 1
    )
    return [name for name, form in step.forms.items() if form.arrangement is None or free]
