"""Configuration of a decoder-only transformer, from config.json or GGUF metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from compiler.frontends.llm.mixers import GatedRecurrence, Recurrent
from compiler.frontends.llm.rope import Rope

MAX_LAYERS = 4096
MAX_HEADS = MAX_EXPERTS = 1 << 14
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu"]
NormKind = Literal["rms", "layer"]
GateKind = Literal["sigmoid", "softplus"]


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts that replaces an MLP: a router chooses a few experts per token.

    Attributes:
        count: number of experts.
        chosen: number of experts per token.
        intermediate: intermediate size of each expert.
        normalized: the probabilities of the chosen experts are scaled to sum to 1.
        jitter: jitter of Phi's mixtures, which weight each expert by the softmax over those experts whose scores are at
            most, relatively, twice this below its own and that were not chosen before it; None: softmax over all.
        shared_gate: the shared expert's result is multiplied by the sigmoid of a linear gate.
        sigmoid: scores are elementwise sigmoids of the router logits; otherwise their softmax.
        biased: experts are selected by score plus a bias that is not part of the weights.
        scale: factor of the weights.
        sum_epsilon: added to the sum that normalizes the weights.
        groups, groups_chosen: number of groups, and of groups that a token's experts are chosen from: those with the
            largest sums of two scores if scores are sigmoids, otherwise with the largest score.
        scales_inputs: experts are chosen by the logits, and their inputs are multiplied by the scores (Llama 4).
        beside: an MLP reads x in parallel with the experts, each with its own norms, and the router a norm without
            weights (Gemma 4).
        clamped: (limit, slope) of experts that compute `(up + 1) * gate * sigmoid(slope * gate)` with gates of at most
            `limit` and ups within [-limit, limit]; None for the model's activation.
        latent: width of the experts' input and output, between two additional matmuls; 0 for the model's width.
        averaged: the result is the mean of the experts' and the shared expert's outputs; otherwise their sum.
        early: the router reads the input of the layer, before attention and without a norm (SmallThinker).
    """

    count: int
    chosen: int
    intermediate: int
    normalized: bool
    shared: int = 0
    shared_gate: bool = False
    jitter: float | None = None
    sigmoid: bool = False
    biased: bool = False
    scale: float = 1.0
    sum_epsilon: float = 0.0
    groups: int = 1
    groups_chosen: int = 1
    scales_inputs: bool = False
    beside: bool = False
    clamped: tuple[float, float] | None = None
    latent: int = 0
    averaged: bool = False
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Multi-head latent attention (arXiv:2405.04434): keys and values are computed from one compressed row per token.

    Attributes:
        query_rank: width of compressed queries; 0 if a single matmul computes the queries.
        rank: width of the compressed keys and values.
        plain, rotated: sizes of the parts of a query without and with a rotary embedding; all heads share the rotated
            part of the keys.
        values: size of a head's values.
        interleaved: rows that are rotated are stored as adjacent pairs.
        epsilon: epsilon of the norms of compressed rows.
    """

    query_rank: int
    rank: int
    plain: int
    rotated: int
    values: int
    interleaved: bool = True
    epsilon: float = 1e-6

    @property
    def width(self) -> int:
        """Width of a token's row in the cache."""
        return self.rank + self.rotated


@dataclass(frozen=True)
class Heads:
    """Attention heads of a layer.

    Attributes:
        count: number of query heads.
        keys: number of key and value heads, each shared by a group of query heads.
        size: width of a head.
    """

    count: int
    keys: int
    size: int

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.count * self.size

    @property
    def key_width(self) -> int:
        """Width of all key heads together."""
        return self.keys * self.size


@dataclass(frozen=True)
class AlternatingUpdates:
    """Several streams, of which each layer computes one and predicts the others (arXiv:2301.13310; Gemma 3n).

    Attributes:
        streams: number of streams.
        active: the stream that layers compute.
    """

    streams: int
    active: int


@dataclass(frozen=True)
class LayerInputs:
    """Per-layer embeddings of tokens, in addition to the residual stream (Gemma 3n and 4).

    Attributes:
        width: width of a token's embedding for one layer.
        vocabulary: number of tokens with such embeddings; all others use that of token 0.
    """

    width: int
    vocabulary: int


@dataclass(frozen=True)
class Temperature:
    """Factor of the queries: 1 + scale * log(1 + floor((position + offset) / floor)).

    Attributes:
        floor, scale, offset: see above.
        rotated: also applies to layers with rotations.
    """

    floor: float
    scale: float
    offset: float = 0.0
    rotated: bool = True


@dataclass(frozen=True)
class XieluNumbers:
    """xIELU: positive * x**2 + beta * x above 0, otherwise negative * (exp(min(x, epsilon)) - 1 - x) + beta * x."""

    positive: float
    negative: float
    beta: float
    epsilon: float

    @staticmethod
    def of_stored(alpha_p: float, alpha_n: float, beta: float, epsilon: float) -> XieluNumbers:
        """Return the numbers for stored factors: softplus of the stored value, plus beta for the negative one."""
        positive, negative = (math.log1p(math.exp(-abs(each))) + max(each, 0.0) for each in (alpha_p, alpha_n))
        return XieluNumbers(positive, beta + negative, beta, epsilon)


@dataclass(frozen=True)
class LayerConfig:
    """Settings of one layer.

    Attributes:
        rope: the rotary position embedding, None if the layer has none.
        window: size of the sliding window, including the query's position; None for full causal attention.
        chunk: tokens of a chunk; a token attends to its own chunk only. None for no chunks.
        experts: the mixture of experts in place of an MLP; None for an MLP.
        attends: the layer has attention.
        recurrent: its recurrent mixer, instead of or in parallel with attention; None for none.
        feeds: the layer has an MLP or a mixture of experts.
        mixed: (a, b, c, d) for layers that compute x = a norm(x) + b attention(norm(x)), and then x = c norm(x) + d
            mlp(norm(x)); None for residual layers.
        xielu: xIELU parameters from the file's metadata; None if they are tensors.
        heads: its attention heads; None for the model's.
        intermediate: width of its MLP; None for the model's.
        shares: the layer whose keys and values it reads; None for its own.
        values_are_keys: its values are the keys before their norm and rotation.
        sparsity: the MLP's gates are `max(gate - mean - sparsity * deviation, 0)` before the activation; None for
            unchanged gates.
    """

    rope: Rope | None
    window: int | None = None
    chunk: int | None = None
    experts: ExpertsConfig | None = None
    attends: bool = True
    recurrent: Recurrent | None = None
    feeds: bool = True
    mixed: tuple[float, float, float, float] | None = None
    xielu: XieluNumbers | None = None
    heads: Heads | None = None
    intermediate: int | None = None
    shares: int | None = None
    values_are_keys: bool = False
    sparsity: float | None = None

    @property
    def keeps(self) -> bool:
        """True if it keeps a state: its own keys and values, or a recurrent state."""
        return (self.attends and self.shares is None) or self.recurrent is not None


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer.

    A block is `x += r * post(attention(pre(x)))`, then `x += r * post(mlp(pre(x)))`, or both at once on the same x if
    `parallel`; which norms exist, and which norms and linear layers have a bias, follows from the checkpoint's weights.

    Attributes:
        architecture: the name in the file, such as "llama".
        hidden, intermediate, vocabulary: widths.
        heads, key_heads: attention heads, and key and value heads shared by groups of them.
        head_size: width of a head.
        context: the largest number of positions.
        norm, epsilon: the kind of all norms, and their epsilon.
        activation: activation function of the MLP.
        gated: the MLP is `down(activation(gate(x)) * up(x))`; otherwise `down(activation(up(x)))`.
        parallel: attention and MLP read the same x.
        position_rows, position_offset: rows of the table of learned positions, and the row of position 0; 0 rows for
            other kinds of positions.
        slopes: ALiBi slope of each head; None without ALiBi.
        score_scale: factor of the query-key dot products.
        score_cap, logit_cap: c of c * tanh(x / c); None for no cap.
        embedding_scale, residual_scale, logit_scale: factors of the embeddings, of blocks' results and of the logits.
        clip: queries, keys and values are clamped to [-clip, clip]; None for no clamping.
        attention_gate: attention results are multiplied by this function of gates that are projected together with the
            queries; None for no gates.
        bare_head_norms: rotated queries and keys are normalized, without weights.
        bare_value_norms: values are normalized per head, without weights.
        layer_inputs: per-layer embeddings; None for none.
        alternating: the streams of a multi-stream model; None for one stream.
        norms_after_rotation: queries and keys are rotated before they are normalized per head.
        temperature: factor of queries that grows with the position; None for no factor.
        latent: attention of all layers is latent, with one key head of the rotated size.
        before_mixers: in layers with attention, a block of attention and an MLP reads x concatenated with the
            embeddings, and its result is added to the recurrent mixer's input (Zamba2).
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
    gated: bool = True
    parallel: bool = False
    position_rows: int = 0
    position_offset: int = 0
    slopes: tuple[float, ...] | None = None
    attention_gate: GateKind | None = None
    bare_head_norms: bool = False
    bare_value_norms: bool = False
    layer_inputs: LayerInputs | None = None
    alternating: AlternatingUpdates | None = None
    norms_after_rotation: bool = False
    temperature: Temperature | None = None
    latent: LatentConfig | None = None
    before_mixers: bool = False

    @property
    def attention_inputs(self) -> int:
        """Width of attention's input rows."""
        return 2 * self.hidden if self.before_mixers else self.hidden

    @property
    def counts(self) -> bool:
        """True if any layer reads token positions."""
        return any(layer.attends or isinstance(layer.recurrent, GatedRecurrence) for layer in self.layers)

    def heads_of(self, layer: int) -> Heads:
        """Return the attention heads of a layer."""
        return self.layers[layer].heads or Heads(self.heads, self.key_heads, self.head_size)

    def intermediate_of(self, layer: int) -> int:
        """Return the width of a layer's MLP."""
        return self.layers[layer].intermediate or self.intermediate
