"""The activation functions that a recurrent node asks for."""

from __future__ import annotations

from compiler.frontends.onnx.context import NodeContext
from schedules.recurrence.activations import KINDS, ActivationChoice


def activations_of(
    context: NodeContext, defaults: tuple[str, ...], directions: int
) -> tuple[tuple[ActivationChoice, ...], ...]:
    """The activation functions of each direction.

    activation_alpha and activation_beta hold values for the functions that have such a parameter, in their order.
    """
    names: list[str] = context.attribute("activations", list(defaults) * directions)
    if len(names) != len(defaults) * directions:
        context.invalid(f"{len(defaults) * directions} activations are needed, not {len(names)}")
    alphas: list[float] = list(context.attribute("activation_alpha", []))
    betas: list[float] = list(context.attribute("activation_beta", []))
    chosen = []
    for name in names:
        kind = KINDS.get(name.lower())
        if kind is None:
            context.refuse(f"the activation {name!r} is unknown")
        chosen.append(ActivationChoice(name.lower(), _next(alphas, kind.alpha), _next(betas, kind.beta)))
    count = len(defaults)
    return tuple(tuple(chosen[direction * count : (direction + 1) * count]) for direction in range(directions))


def _next(values: list[float], default: float | None) -> float:
    if default is None:
        return 0.0
    return float(values.pop(0)) if values else default
