"""What a decoder computes: one transformer block with options, read from config.json or from GGUF metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compiler.frontends.llm.rope import Rope

MOST_LAYERS = 4096
Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]
NormKind = Literal["rms", "layer"]


@dataclass(frozen=True)
class LayerConfig:
    """One layer's own settings.

    Attributes:
        rope: the rotary position embedding, None where the layer has none.
        window: how many positions, its own included, a query sees; None for all before it.
    """

    rope: Rope | None
    window: int | None = None


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    A block is `x += r * post(attention(pre(x)))`, then `x += r * post(mlp(pre(x)))`; which of the norms there are, and
    which products have a bias, is known by the weights that the checkpoint holds.

    Attributes:
        architecture: the name in the file, as "llama".
        hidden, intermediate, vocabulary: widths.
        heads, key_heads: attention heads, and heads of keys and values that groups of them share.
        head_size: width of a head.
        context: the largest number of positions.
        norm, epsilon: the kind of all norms, and what is added to the variance.
        activation: of the gated MLP.
        score_scale: factor of the products of queries and keys.
        score_cap, logit_cap: c of c * tanh(x / c); None for no cap.
        embedding_scale, residual_scale, logit_scale: factors of the embeddings, of what a block adds, of the logits.
        clip: queries, keys and values are limited to [-clip, clip]; None for no limit.
    """

    architecture: str
    hidden: int
    intermediate: int
    vocabulary: int
    heads: int
    key_heads: int
    head_size: int
    context: int
    layers: tuple[LayerConfig, ...]
    score_scale: float
    norm: NormKind = "rms"
    epsilon: float = 1e-5
    activation: Activation = "silu"
    score_cap: float | None = None
    logit_cap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    clip: float | None = None

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together."""
        return self.key_heads * self.head_size
