"""Description of a package's network, which is built in the process that checks it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

IMAGE = ((0, 0, 1), (0, 2, 32), (0, 3, 32))
BATCH = ((0, 0, 1),)
_TOKENS = ((0, 0, 1), (0, 1, 1))

_VANISHING = 0.01  # parameters below it are drawn again

Build = Callable[[], tuple[Any, tuple[Any, ...]]]
Axes = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class PackageModel:
    """A network and its inputs.

    Attributes:
        build: returns the module and its positional inputs.
        dynamic: (input, axis, multiple): the axes that are tried together as dynamic dimensions, each a multiple of a
            number; fewer are tried where `torch.export` refuses.
        tied: (input, axis, place) of other axes that have the size of the dynamic axis of that place.
        find: finds `dynamic` and `tied` by the inputs, where these are not known before.
    """

    name: str
    build: Build
    dynamic: Axes = BATCH
    tied: Axes = ()
    find: Callable[[tuple[Any, ...]], tuple[Axes, Axes]] | None = None

    def without(self, fixed: set[tuple[int, int]]) -> PackageModel:
        """The network without these dynamic (input, axis), and without the axes tied to them."""
        gone = {number for number, each in enumerate(self.dynamic) if each[:2] in fixed}
        gone |= {number for place, axis, number in self.tied if (place, axis) in fixed}
        kept = [number for number in range(len(self.dynamic)) if number not in gone] if gone else []
        tied = tuple((place, axis, kept.index(number)) for place, axis, number in self.tied if number in kept)
        return replace(self, dynamic=tuple(self.dynamic[number] for number in kept), tied=tied)


def usual_axes(inputs: tuple[Any, ...]) -> tuple[Axes, Axes]:
    """Batch and length, or batch, height and width, of the first input, and the tied axes of other inputs."""
    first = inputs[0].shape
    found = ((0, 0, 1), *((0, axis, _step(first[axis])) for axis in range(2, 4))) if len(first) == 4 else _TOKENS
    axes = tuple(each for each in found if each[1] < len(first) and first[each[1]] > 1)
    tied = tuple(
        (place, axis, number)
        for place, each in enumerate(inputs[1:], 1)
        for number, (_, axis, _) in enumerate(axes)
        if len(each.shape) > axis and each.shape[axis] == first[axis] and (axis < 2 or len(each.shape) == len(first))
    )
    return axes, tied


def _step(size: int) -> int:
    """The largest power of two, at most 32, that divides an image size."""
    return next(step for step in (32, 16, 8, 4, 2, 1) if size % step == 0)


def first_tensor(value: Any) -> Any:
    """The first tensor in nested tuples, lists, dictionaries and output classes."""
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "values"):
        value = list(value.values())
    elif not isinstance(value, tuple | list):
        value = [each for each in vars(value).values() if each is not None]
    return next((found for each in value if (found := first_tensor(each)) is not None), None) if value else None


def with_call(net: Any, call: Callable[..., Any], **constants: Any) -> Any:
    """A module whose forward returns the first tensor of `call(net, *inputs, **constants)`; the constants, tensors, are
    its buffers."""
    import torch

    class Called(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net
            for name, value in constants.items():
                self.register_buffer(name, value, persistent=False)

        def forward(self, *inputs: Any) -> Any:
            return first_tensor(call(self.net, *inputs, **{name: getattr(self, name) for name in constants}))

    return Called()


def draw_weights(net: Any) -> None:
    """Random weights of usual magnitude in place of those before training: results would hardly depend on the inputs
    with factors of 0.02 in narrow layers, biases of zero and residual branches scaled by 1e-6."""
    import torch

    with torch.no_grad():
        for module in net.modules():
            if type(module).__module__.startswith("torch.nn") and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for parameter in net.parameters():
            if parameter.is_floating_point() and parameter.numel() and float(parameter.abs().max()) < _VANISHING:
                parameter.uniform_(-0.3, 0.3)


def takes_any_inputs(net: Any) -> bool:
    """True for the modules of `with_call`: `torch.export` sees one argument, a tuple."""
    return any(each.kind is each.VAR_POSITIONAL for each in inspect.signature(net.forward).parameters.values())
