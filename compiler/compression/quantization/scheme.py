"""Integer types of tensors; the target's description decides what the caller does not specify."""

from __future__ import annotations

from dataclasses import dataclass

import targets
from compiler.errors import OptionError

_ACTIVATIONS = ("uint8", "int8")


@dataclass(frozen=True)
class Scheme:
    """Representation of tensors.

    Attributes:
        activations: "uint8" or "int8", one scale and zero point per tensor.
        symmetric_activations: the zero point is the middle of the range.
        per_channel: weights have a scale for each filter, else one for all; they are int8 with zero point 0.
        integer_only: every tensor is rounded, not only what products read.
        operators: what else the target computes in integers then, by name.
    """

    activations: str = "uint8"
    symmetric_activations: bool = False
    per_channel: bool = True
    integer_only: bool = False
    operators: frozenset[str] = frozenset()


def scheme_for(target: targets.Target, activations: str | None = None, per_channel: bool | None = None) -> Scheme:
    """Scheme that suits the target: x86 multiplies unsigned by signed bytes, ARM signed by signed ones; an accelerator
    of integers wants every tensor as one.

    Raises:
        OptionError: `activations` is neither.
    """
    signed = target.quantized_everywhere or target.machine.architecture in ("aarch64", "armv7")
    if activations is None:
        activations = "int8" if signed else "uint8"
    if activations not in _ACTIVATIONS:
        raise OptionError(f"activations={activations!r}", f"use one of {', '.join(_ACTIVATIONS)}")
    return Scheme(
        activations,
        per_channel=True if per_channel is None else per_channel,
        integer_only=target.quantized_everywhere,
        operators=target.integer_operators,
    )
