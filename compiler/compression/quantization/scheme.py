"""Which integers stand for which tensors; the target's description decides what the caller leaves open."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import OptionError
from schedules.machine import Machine

_ACTIVATIONS = ("uint8", "int8")


@dataclass(frozen=True)
class Scheme:
    """How tensors are represented.

    Attributes:
        activations: "uint8" or "int8", one scale and zero point a tensor.
        symmetric_activations: the zero point is the middle of the range.
        per_channel: weights have a scale for each filter, else one for all; they are int8 with zero point 0.
    """

    activations: str = "uint8"
    symmetric_activations: bool = False
    per_channel: bool = True


def scheme_for(machine: Machine, activations: str | None = None, per_channel: bool | None = None) -> Scheme:
    """What suits the machine: x86 multiplies unsigned by signed bytes, ARM signed by signed ones.

    Raises:
        OptionError: `activations` is neither.
    """
    if activations is None:
        activations = "int8" if machine.architecture in ("aarch64", "armv7") else "uint8"
    if activations not in _ACTIVATIONS:
        raise OptionError(f"activations={activations!r}", f"use one of {', '.join(_ACTIVATIONS)}")
    return Scheme(activations, False, True if per_channel is None else per_channel)
