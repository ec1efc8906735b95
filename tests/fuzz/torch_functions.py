"""Templates of random PyTorch operators: each returns a module for a shape, or None."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Random = np.random.Generator
Template = Callable[[Random, Tensor], Any]
"""Called as template(random, example): a module or function of one tensor, or None where the shape does not fit."""


class Of(nn.Module):
    """A module of a function with settings."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> None:
        super().__init__()
        self.function, self.arguments, self.settings = function, arguments, settings

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.arguments, **self.settings)

    def extra_repr(self) -> str:
        return f"{getattr(self.function, '__name__', self.function)} {self.arguments} {self.settings}"


def _integer(random: Random, low: int, high: int) -> int:
    return int(random.integers(low, high + 1))


def _axis(random: Random, x: Tensor) -> int:
    return _integer(random, -x.ndim, x.ndim - 1)


def _chance(random: Random) -> bool:
    return bool(random.random() < 0.5)


def _pick(random: Random, options: Any) -> Any:
    return options[_integer(random, 0, len(options) - 1)]


SMOOTH = (
    torch.tanh, torch.sigmoid, torch.sin, torch.cos, torch.erf, torch.atan, functional.gelu, functional.silu,
    functional.mish, functional.softplus, functional.elu, functional.selu, functional.celu, functional.logsigmoid,
    functional.softsign, functional.tanhshrink, functional.relu, functional.relu6, functional.hardswish,
    functional.leaky_relu, torch.abs, torch.neg, torch.square, torch.expm1, torch.exp2, torch.asinh, torch.logaddexp,
)  # fmt: skip


def elementwise(random: Random, x: Tensor) -> Any:
    function = _pick(random, SMOOTH)
    if function is torch.logaddexp:
        return Of(lambda y: torch.logaddexp(torch.tanh(y), torch.sin(y)))
    bounded = function in (torch.square, torch.expm1, torch.exp2)
    return nn.Sequential(nn.Tanh(), Of(function)) if bounded else Of(function)


def activation_with_settings(random: Random, x: Tensor) -> Any:
    low = float(random.uniform(-1, 0))
    return _pick(
        random,
        [
            Of(functional.gelu, approximate="tanh"),
            Of(functional.softplus, beta=2.0, threshold=1.0),
            Of(functional.leaky_relu, 0.3),
            Of(functional.elu, 0.7),
            Of(functional.hardtanh, low, low + 1),
            Of(functional.softshrink, 0.3),
            Of(functional.hardsigmoid),
            Of(functional.threshold, 0.1, -3.0),
            Of(torch.clamp, min=low),
            Of(torch.nan_to_num, 1.0),
            nn.PReLU(),
            Of(lambda y: torch.lerp(y, torch.ones_like(y), 0.3)),
        ],
    )


def normalized(random: Random, x: Tensor) -> Any:
    function = _pick(random, (functional.softmax, functional.log_softmax, functional.softmin, functional.normalize))
    return Of(function, dim=_axis(random, x)) if x.ndim else None


def reduction(random: Random, x: Tensor) -> Any:
    if not x.ndim:
        return None
    axis, keep = _axis(random, x), _chance(random)
    return _pick(
        random,
        [
            Of(torch.sum, axis, keep), Of(torch.mean, axis, keep), Of(torch.amax, axis, keep),
            Of(torch.amin, axis, keep), Of(torch.logsumexp, axis, keep), Of(torch.norm, dim=axis, keepdim=keep),
            Of(torch.var, axis, correction=0, keepdim=keep), Of(torch.linalg.vector_norm, 1, axis, keep),
            Of(torch.cumsum, axis), Of(torch.logcumsumexp, axis), Of(torch.mean, list(range(x.ndim)), keep),
        ],
    )  # fmt: skip


def moved(random: Random, x: Tensor) -> Any:
    if x.ndim < 2:
        return Of(torch.unsqueeze, _integer(random, -1, x.ndim))
    one, other = _axis(random, x), _axis(random, x)
    return _pick(
        random,
        [
            Of(torch.transpose, one, other), Of(torch.permute, tuple(random.permutation(x.ndim).tolist())),
            Of(torch.flip, (one,)), Of(torch.roll, _integer(random, -3, 3), one), Of(torch.unsqueeze, one),
            Of(torch.flatten, 0, 1), Of(torch.flatten, -2), Of(torch.movedim, one, other),
            Of(lambda y: y.expand(3, *y.shape)), Of(lambda y: y.repeat(*[2] * y.ndim)),
            Of(lambda y: y.unfold(-1, 2, 1) if y.shape[-1] > 1 else y), Of(torch.tril), Of(torch.triu, 1),
            Of(torch.repeat_interleave, 2, dim=one), Of(torch.diagonal, _integer(random, -1, 1), -2, -1),
        ],
    )  # fmt: skip


def cut(random: Random, x: Tensor) -> Any:
    if not x.ndim:
        return None
    axis = _integer(random, 0, x.ndim - 1)
    size = x.shape[axis]
    start, stop, step = _integer(random, -size, size), _integer(random, -size, size + 2), _integer(random, 1, 3)
    shape = [-1 if each == axis else 1 for each in range(x.ndim)]
    index = (*[slice(None)] * axis, slice(start, stop, step))
    places = torch.from_numpy(random.integers(0, size, _integer(random, 1, 5)))
    return _pick(
        random,
        [
            Of(lambda y: y[index]), Of(torch.index_select, axis, places), Of(lambda y: y.chunk(2, axis)[0]),
            Of(lambda y: y.select(axis, -1)), Of(lambda y: y.narrow(axis, 0, 1)), Of(lambda y: y[..., None, :]),
            Of(lambda y: y.take_along_dim(torch.arange(y.shape[axis]).reshape(shape).flip(axis), axis)),
        ],
    )  # fmt: skip


def joined(random: Random, x: Tensor) -> Any:
    if not x.ndim:
        return None
    axis = _axis(random, x)
    mode = _pick(random, ("constant", "reflect", "replicate", "circular"))
    pads = [_integer(random, 0, 2) for _ in range(2)]
    return _pick(
        random,
        [
            Of(lambda y: torch.cat([y, torch.tanh(y)], axis)), Of(lambda y: torch.stack([y, -y], axis)),
            Of(functional.pad, pads, "constant", 0.5), Of(lambda y: y + y.mean(axis, keepdim=True)),
            Of(functional.pad, pads, mode) if x.ndim == 3 else Of(functional.pad, [-1, 2]),
            Of(lambda y: torch.where(y > 0, y, y.flip(axis))), Of(lambda y: torch.maximum(y, y.flip(axis))),
            Of(lambda y: y.movedim(axis, -1) * torch.linspace(-1, 1, y.shape[axis], dtype=y.dtype)),
            Of(lambda y: y / (1 + y.abs())), Of(lambda y: torch.einsum("...i,...j->...ij", y, torch.tanh(y))),
        ],
    )  # fmt: skip


def product(random: Random, x: Tensor) -> Any:
    if x.ndim < 2 or not 1 < x.shape[-1] < 40:
        return None
    size, width = x.shape[-1], _pick(random, (1, 3, 8, 17))
    return _pick(
        random,
        [
            nn.Linear(size, width, bias=_chance(random)), nn.LayerNorm(size), nn.RMSNorm(size, eps=1e-5),
            Of(lambda y: torch.tanh(y) @ torch.tanh(y).mT), nn.Sequential(nn.Tanh(), Bilinear(size, width)),
            Of(lambda y: functional.scaled_dot_product_attention(y, torch.tanh(y), y, is_causal=False)),
        ],
    )  # fmt: skip


class Bilinear(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Bilinear(size, size, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x, x)
        return result


def windows(random: Random, x: Tensor) -> Any:
    """Convolutions, pooling and norms of (batch, channels, 1 to 3 axes)."""
    rank = x.ndim - 2
    if not 1 <= rank <= 3 or x.shape[1] > 32:
        return None
    channels = x.shape[1]
    kernel, stride, pad = _integer(random, 1, 3), _integer(random, 1, 3), _integer(random, 0, 1)
    pad, ceil, dilation = min(pad, kernel // 2), _chance(random), _integer(random, 1, 2)
    layer: Any = nn
    kinds: list[Any] = [
        lambda: getattr(layer, f"Conv{rank}d")(
            channels, _pick(random, (1, 4, 6)), kernel, stride, pad, dilation, bias=_chance(random)
        ),
        lambda: getattr(layer, f"Conv{rank}d")(channels, 2 * channels, kernel, padding="same", groups=channels),
        lambda: getattr(layer, f"ConvTranspose{rank}d")(
            channels, 3, kernel, stride, pad, output_padding=stride - 1 if _chance(random) else 0, dilation=dilation
        ),
        lambda: getattr(layer, f"MaxPool{rank}d")(kernel, stride, pad, dilation, ceil_mode=ceil),
        lambda: getattr(layer, f"AvgPool{rank}d")(
            kernel, stride, pad, ceil_mode=ceil, count_include_pad=_chance(random)
        ),
        lambda: getattr(layer, f"LPPool{rank}d")(2, kernel, stride) if rank < 3 else None,
        lambda: getattr(layer, f"BatchNorm{rank}d")(channels),
        lambda: getattr(layer, f"InstanceNorm{rank}d")(channels, affine=_chance(random)),
        lambda: nn.GroupNorm(_pick(random, [g for g in (1, 2, 3, 4) if channels % g == 0]), channels),
        lambda: getattr(layer, f"AdaptiveAvgPool{rank}d")(_pick(random, (1, 2, 3))),
        lambda: Of(functional.local_response_norm, 3),
        lambda: getattr(layer, f"ZeroPad{rank}d")(pad),
        lambda: Of(_resized, _pick(random, (1.5, 2, 0.5, 2.3, 0.7)), _pick(random, ("nearest", "linear", "area"))),
        lambda: Of(functional.pixel_shuffle, 2) if rank == 2 and channels % 4 == 0 else None,
        lambda: Of(functional.unfold, kernel, 1, pad, stride) if rank == 2 else None,
        lambda: nn.AvgPool2d(kernel, stride, pad, ceil, True, 3) if rank == 2 else None,
    ]
    return _pick(random, kinds)()


def _resized(x: Tensor, factor: float, mode: str) -> Tensor:
    names = {3: "linear", 4: "bilinear", 5: "trilinear"}
    return functional.interpolate(x, scale_factor=factor, mode=names[x.ndim] if mode == "linear" else mode)


def recurrent(random: Random, x: Tensor) -> Any:
    if x.ndim != 3 or x.shape[-1] > 24:
        return None
    kind = _pick(random, (nn.LSTM, nn.GRU, nn.RNN))
    net = kind(
        x.shape[-1], 5, bidirectional=_chance(random), batch_first=_chance(random), num_layers=_integer(random, 1, 2)
    )
    return nn.Sequential(net, Of(lambda y: y[0]))


def discrete(random: Random, x: Tensor) -> Any:
    """Discontinuous functions: applied only to inputs, whose values are exact."""
    if not x.ndim:
        return None
    axis = _axis(random, x)
    return _pick(
        random,
        [
            Of(torch.round), Of(torch.floor), Of(torch.sign), Of(torch.frac), Of(torch.trunc),
            Of(lambda y: y.argmax(axis)), Of(lambda y: y.argmin(axis, keepdim=True)), Of(lambda y: y.sort(axis)[0]),
            Of(lambda y: y.sort(axis, descending=True)[1]), Of(lambda y: y.topk(1, axis)[0]), Of(lambda y: y > 0.5),
            Of(lambda y: (y * 4).to(torch.int64) // 3), Of(lambda y: (y * 9).to(torch.int32) % 4),
            Of(lambda y: torch.remainder(y, 0.7)), Of(lambda y: torch.fmod(y, 0.7)), Of(lambda y: (y > 0).cumsum(axis)),
            Of(lambda y: y.masked_fill(y > 0, -2.0)), Of(lambda y: (y > 0).any(axis)), Of(lambda y: y.bool().all(axis)),
            Of(lambda y: torch.bucketize(y, torch.tensor([-1.0, 0.0, 0.5]))), Of(lambda y: (y * 3).to(torch.int8)),
            Of(lambda y: functional.one_hot((y.abs() * 2).long().clamp(max=4), 5)), Of(lambda y: y.cummax(axis)[0]),
            Of(lambda y: torch.isclose(y, y.round(), atol=0.2)), Of(lambda y: (y > 0) ^ (y < 1)),
        ],
    )  # fmt: skip


TEMPLATES: tuple[Template, ...] = (
    elementwise, activation_with_settings, normalized, reduction, moved, cut, joined, product, product, windows,
    windows, windows, recurrent,
)  # fmt: skip
