"""Recurrent mixers of decoders: short convolution, selective scan and gated delta rule, with the states they keep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

Shapes: TypeAlias = "dict[str, tuple[int, ...]]"
_BLOCK = 64  # channels of Mamba that are scanned together


@dataclass(frozen=True, kw_only=True)
class ShortConvolution:
    """The mixer of LFM2: `out(c * convolution(b * x))` of three parts of one product.

    Attributes:
        width: of the model.
        taps: of the convolution.
    """

    width: int
    taps: int

    @property
    def states(self) -> Shapes:
        """The rows that the convolution reaches back to."""
        return {"window": (self.taps - 1, self.width)}


@dataclass(frozen=True, kw_only=True)
class StateSpace:
    """The mixer of Mamba, or of Mamba-2 where there are `heads`.

    Attributes:
        inner: channels of the scan.
        sizes: places of the state of a channel.
        taps: of the convolution.
        rank: width of what steps are computed from (Mamba).
        heads, groups: of channels that share a step, and those that share what is written and read (Mamba-2).
        limits: of the steps (Mamba-2).
        norm: of the result, in groups: behind its gate, before it, or none (Mamba-2).
        selection_norms: of steps, and of what is written and read: none, RMS without weights, or with them (Mamba).
        selection_epsilon: of these.
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
        """Channels that are scanned together."""
        if self.heads:
            return self.inner // self.heads
        return next(width for width in range(min(_BLOCK, self.inner), 0, -1) if self.inner % width == 0)

    @property
    def states(self) -> Shapes:
        """The rows that the convolution reaches back to, and the state of each channel."""
        blocks = self.inner // self.block
        return {"window": (self.taps - 1, self.convolved), "state": (blocks, self.sizes, self.block)}


@dataclass(frozen=True, kw_only=True)
class GatedDelta:
    """The mixer of Qwen3-Next: linear attention by the gated delta rule.

    Attributes:
        heads, key_heads: of values, and of queries and keys, which groups of them share.
        key_size, value_size: widths of these heads.
        taps: of the convolution.
        layout: of the products: "joined", by key head in two tensors (Qwen3-Next), "separate" in four (Qwen3.5), or
            "mixed", separate ones but for rates and steps (GGUF files of Qwen3-Next).
        tiled: value head i reads key head i % key_heads (GGUF files of Qwen3.5); else neighbours share one.
        rate_scale: what the correction is multiplied with, beside its sigmoid.
    """

    heads: int
    key_heads: int
    key_size: int
    value_size: int
    taps: int
    layout: Literal["joined", "separate", "mixed"] = "separate"
    tiled: bool = False
    rate_scale: float = 1.0

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
        """The rows that the convolution reaches back to, and the matrix of each head."""
        return {"window": (self.taps - 1, self.convolved), "state": (self.heads, self.key_size, self.value_size)}


Recurrent: TypeAlias = ShortConvolution | StateSpace | GatedDelta
