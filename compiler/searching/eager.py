"""Runs a torch net as one of its sub-nets: masked parameters, layers that output zeros, rounded layers, scaled images.
All sub-nets share the net's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

_GROUP = 64  # neighbors that share a scale in int4


@dataclass(frozen=True)
class SubNet:
    """Sub-net of a torch net for a config.

    Attributes:
        masks: by parameter name, 1 for kept elements.
        silent: names of the modules whose outputs, operands of residual sums, become zero.
        precisions: precision by module name.
        scale: (height, width) that images are scaled to; None: unchanged.
    """

    masks: Mapping[str, torch.Tensor]
    silent: frozenset[str] = frozenset()
    precisions: Mapping[str, str] = field(default_factory=dict)
    scale: tuple[int, int] | None = None


def computed(net: nn.Module, sub: SubNet, inputs: Sequence[Any], buffers: Mapping[str, Any] | None = None) -> Any:
    """The outputs of a sub-net; gradients reach the shared parameters. `buffers`: used instead of the net's own, which
    batch norms update in training."""
    weights = {name: parameter * sub.masks[name] for name, parameter in net.named_parameters() if name in sub.masks}
    for module, precision in sub.precisions.items():
        name = f"{module}.weight"
        weights[name] = rounded_weight(weights.get(name, net.get_parameter(name)), precision)
    with hooked(net, sub):
        return torch.func.functional_call(net, ({**weights, **(buffers or {})}), tuple(scaled(inputs, sub.scale)))


@contextmanager
def hooked(net: nn.Module, sub: SubNet) -> Iterator[None]:
    """Install a sub-net's hooks on the net's modules inside the block."""
    handles = silence(net, sub.silent)
    modules = dict(net.named_modules())
    for name, precision in sub.precisions.items():
        if precision == "int8":
            handles.append(modules[name].register_forward_pre_hook(_round_inputs))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def silence(net: nn.Module, names: frozenset[str]) -> list[Any]:
    """Handles of hooks that make these modules output zeros."""
    modules = dict(net.named_modules())
    return [modules[name].register_forward_hook(_zeros) for name in sorted(names)]


def _zeros(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, torch.zeros_like, output)


def scaled(inputs: Sequence[Any], scale: tuple[int, int] | None) -> list[Any]:
    """The inputs with images (N, C, H, W) scaled bilinearly, like in the graph."""
    if scale is None:
        return list(inputs)
    return [
        nn.functional.interpolate(each, size=scale, mode="bilinear", align_corners=False)
        if isinstance(each, torch.Tensor) and each.ndim == 4
        else each
        for each in inputs
    ]


def rounded_weight(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """A weight after rounding to fewer bits: int8 per output channel, int4 in groups along the matrices' depth."""
    if precision == "bf16":
        return weight.bfloat16().float()
    rows = weight.flatten(1)
    if precision == "int4" and weight.ndim == 2:
        depth = rows.shape[1]
        padded = nn.functional.pad(rows, (0, -depth % _GROUP)).reshape(len(rows), -1, _GROUP)
        return _rounded(padded, 7).reshape(len(rows), -1)[:, :depth].reshape(weight.shape)
    return _rounded(rows, 127).reshape(weight.shape)


def _rounded(values: torch.Tensor, most: int) -> torch.Tensor:
    scale = (values.abs().amax(-1, keepdim=True) / most).clamp_min(1e-12)
    return (values / scale).round().clamp(-most, most) * scale


def _round_inputs(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_rounded_activation(each) if isinstance(each, torch.Tensor) else each for each in inputs)


def _rounded_activation(values: torch.Tensor) -> torch.Tensor:
    if not values.is_floating_point() or not values.numel():
        return values
    low, high = values.min().clamp_max(0), values.max().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return ((values / scale + zero).round().clamp(0, 255) - zero) * scale


def has_batch_norm(net: nn.Module) -> bool:
    """True if sub-nets need their own statistics."""
    return any(isinstance(module, _BatchNorm) and module.track_running_stats for module in net.modules())


def recalibrated(net: nn.Module, sub: SubNet, batches: Sequence[Sequence[Any]]) -> dict[str, torch.Tensor]:
    """Buffers with a sub-net's own batch norm statistics, from batches of inputs."""
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    names = {id(module): name for name, module in net.named_modules()}
    saved = [(module.momentum, module.training) for module in norms]
    for module in norms:
        prefix = f"{names[id(module)]}." if names[id(module)] else ""
        buffers[f"{prefix}running_mean"].zero_()
        buffers[f"{prefix}running_var"].fill_(1)
        if f"{prefix}num_batches_tracked" in buffers:
            buffers[f"{prefix}num_batches_tracked"].zero_()
        module.momentum = None  # cumulative mean over all batches
        module.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                computed(net, sub, inputs, buffers)
    finally:
        for module, (momentum, training) in zip(norms, saved, strict=True):
            module.momentum = momentum
            module.train(training)
    return buffers
