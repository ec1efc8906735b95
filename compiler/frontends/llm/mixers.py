"""Recurrent mixers of decoders: short convolution, selective scan and gated delta rule, with their states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"
_BLOCK = 64  # channels of Mamba scanned together


@dataclass(frozen=True, kw_only=True)
class ShortConvolution:
    """The mixer of LFM2: `out(c * convolution(b * x))` of three parts of one matmul.

    Attributes:
        width: hidden size of the model.
        taps: kernel size of the convolution.
    """

    width: int
    taps: int

    @property
    def states(self) -> Shapes:
        """The last rows, for the convolution."""
        return {"window": (self.taps - 1, self.width)}


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """The mixer of Mamba, or of Mamba-2 if there are `heads`.

    Attributes:
        inner: channels of the scan.
        sizes: state size of a channel.
        taps: kernel size of the convolution.
        rank: rank of the projection to steps, dt (Mamba).
        heads, groups: number of channel groups with a shared step, and of those with shared B and C (Mamba-2).
        limits: range of the steps (Mamba-2).
        norm: group norm of the result: after its gate, before it, or none (Mamba-2).
        selection_norms: norms of dt, B and C: none, RMS without weights, or RMS with weights (Mamba).
        selection_epsilon: epsilon of these norms.
    """

    inner: int
    sizes: int
    taps: int
    rank: int = 0
    heads: int = 0
    groups: int = 1
    limits: tuple[float, float] = (0.0, math.inf)
    norm: Literal["gated", "before", "none"] = "none"
    selection_norms: Literal["none", "bare", "weighted"] = "none"
    selection_epsilon: float = 1e-6

    @property
    def convolved(self) -> int:
        """Channels of the convolution."""
        return self.inner + 2 * self.groups * self.sizes if self.heads else self.inner

    @property
    def block(self) -> int:
        """Channels scanned together."""
        if self.heads:
            return self.inner // self.heads
        return _block(self.inner)

    @property
    def states(self) -> Shapes:
        """The last rows, for the convolution, and the state of each channel."""
        blocks = self.inner // self.block
        return {"window": (self.taps - 1, self.convolved), "state": (blocks, self.sizes, self.block)}


@dataclass(frozen=True, kw_only=True)
class GatedRecurrence:
    """The mixer of RecurrentGemma (Griffin, arXiv:2402.19427): a convolution and a real-gated linear recurrent unit.

    Attributes:
        width: channels of both.
        heads: blocks of channels with block-diagonal gate projections.
        taps: kernel size of the convolution.
    """

    width: int
    heads: int
    taps: int

    @property
    def states(self) -> Shapes:
        """The last rows, for the convolution, and a number per channel."""
        block = _block(self.width)
        return {"window": (self.taps - 1, self.width), "state": (self.width // block, 1, block)}


@dataclass(frozen=True, kw_only=True)
class GatedDelta:
    """The mixer of Qwen3-Next, OLMo-Hybrid and Kimi Linear: linear attention by the gated delta rule.

    Attributes:
        heads, key_heads: number of value heads, and of query and key heads, each shared by a group of value heads.
        key_size, value_size: widths of these heads.
        taps: kernel size of the convolution.
        layout: layout of the projections: "joined", by key head in two tensors (Qwen3-Next), "separate" in four
            (Qwen3.5), "mixed", separate except for rates and steps (GGUF files of Qwen3-Next), "parts", with queries,
            keys and values separate as well (OLMo-Hybrid), or "low-rank", the same with gates and steps as two matmuls
            each (Kimi Linear, whose states have a step per row).
        tiled: value head i reads key head i % key_heads (GGUF files of Qwen3.5); otherwise neighbors share one.
        rate_scale: factor of the correction, besides its sigmoid.
        gate: activation of the gates of the result.
        epsilon: epsilon of the result's norm; None for the model's.
    """

    heads: int
    key_heads: int
    key_size: int
    value_size: int
    taps: int
    layout: Literal["joined", "separate", "mixed", "parts", "low-rank"] = "separate"
    tiled: bool = False
    rate_scale: float = 1.0
    gate: Literal["silu", "sigmoid"] = "silu"
    epsilon: float | None = None

    @property
    def steps(self) -> int:
        """Number of steps per token."""
        return self.heads * (self.key_size if self.layout == "low-rank" else 1)

    @property
    def keys(self) -> int:
        """Width of all keys together."""
        return self.key_heads * self.key_size

    @property
    def values(self) -> int:
        """Width of all values together."""
        return self.heads * self.value_size

    @property
    def convolved(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return 2 * self.keys + self.values

    @property
    def states(self) -> Shapes:
        """The last rows, for the convolution, and the matrix of each head."""
        return {"window": (self.taps - 1, self.convolved), "state": (self.heads, self.key_size, self.value_size)}


@dataclass(frozen=True, kw_only=True)
class LightningAttention:
    """The mixer of MiniMax-Text-01: linear attention with a fixed decay per head (arXiv:2401.04658).

    Attributes:
        heads: number of heads.
        size: width of each head's queries, keys and values.
    """

    heads: int
    size: int

    @property
    def states(self) -> Shapes:
        """The matrix of each head."""
        return {"state": (self.heads, self.size, self.size)}

    def decays(self, layer: int, layers: int) -> list[float]:
        """Return logarithms of the share of each head's state that a token keeps."""
        factor = 1 - layer / (layers - 1 + 1e-5) + 1e-5
        return [-factor * 2 ** (-8 * (head + 1) / self.heads) for head in range(self.heads)]


@dataclass(frozen=True, kw_only=True)
class MatrixMemory:
    """The mixer of xLSTM (mLSTM, arXiv:2405.04517): linear attention with exponential input gates.

    Attributes:
        heads: number of heads.
        key_size, value_size: widths of these heads.
        cap: c of c * tanh(x / c) of the gates.
    """

    heads: int
    key_size: int
    value_size: int
    cap: float

    @property
    def states(self) -> Shapes:
        """The matrix of each head, the sum of its gated keys, and the logarithm of its largest gate."""
        matrix = (self.heads, self.key_size, self.value_size)
        return {"state": matrix, "key_sum": (self.heads, self.key_size, 1), "largest": (self.heads,)}


@dataclass(frozen=True, kw_only=True)
class TimeMixing:
    """The mixer of RWKV 7 (arXiv:2503.14456): a delta rule with token shift.

    Attributes:
        heads, size: number of heads, and their size.
        epsilon: epsilon of the group norm of the result.
        key_epsilon: added to the squared length of removal keys.
        shifts_channels: the MLP of the layer has a token shift too.
    """

    heads: int
    size: int
    epsilon: float
    key_epsilon: float
    shifts_channels: bool

    @property
    def width(self) -> int:
        """Width of all heads together: the hidden size."""
        return self.heads * self.size

    @property
    def states(self) -> Shapes:
        """The previous token, the matrix of each head, and the MLP's previous token."""
        shift = (1, self.width)
        found: Shapes = {"shift": shift, "state": (self.heads, self.size, self.size)}
        return {**found, "channel_shift": shift} if self.shifts_channels else found


Recurrent: TypeAlias = (
    ShortConvolution | StateSpace | GatedRecurrence | GatedDelta | LightningAttention | MatrixMemory | TimeMixing
)


def _block(channels: int) -> int:
    """Return the number of channels scanned together if each has its own decay."""
    return next(width for width in range(min(_BLOCK, channels), 0, -1) if channels % width == 0)
