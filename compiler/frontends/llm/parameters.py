"""The weights of a decoder by role: fused tensors are split, and rows are reordered for this compiler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.adapters import KeptAdapters
from compiler.frontends.llm.blocks import dequantized
from compiler.frontends.llm.config import DecoderConfig, ExpertsConfig, LatentConfig, LayerInputs, XieluNumbers
from compiler.frontends.llm.names import Names
from compiler.frontends.llm.weights import (
    FLOAT_KINDS,
    Array,
    Checkpoint,
    Experts,
    Linear,
    Matrix,
    joined,
    stacked,
)


@dataclass(frozen=True)
class Norm:
    """A weight of None is 1, a bias of None is 0; both are float32 (size,)."""

    weight: Array | None
    bias: Array | None = None


@dataclass(frozen=True)
class Storage:
    """Storage conventions of a file format for a decoder's weights.

    Attributes:
        interleaved: rows of queries and keys are ordered for the rotation of adjacent pairs (GGUF of Llama, GPT-J).
        grouped: a fused tensor holds, for each key head, its queries, its keys and its values; otherwise all queries
            precede all keys.
        transposed: weights of layers are stored as (depth, rows).
        alternating: rows of the fused first matmul of experts are gate, up, gate, up, ...; otherwise all gates come
            first.
        stacked_rows: tensors of all experts without ".weight" are (experts, rows, depth); otherwise (experts, depth,
            rows).
        norm_offset: offset added to norm weights (Gemma's are stored minus 1).
        tied: the output head is the embedding; None: if there is no head tensor.
        bare_norms: norms have no weights (OLMo).
        decays: decays of recurrent mixers are stored directly, as negative numbers; otherwise as logarithms of
            magnitudes.
        factors: role -> factor of a weight's matmul (Falcon-H1), one number or one per output.
    """

    interleaved: bool = False
    grouped: bool = False
    transposed: bool = False
    alternating: bool = False
    stacked_rows: bool = False
    norm_offset: float = 0.0
    tied: bool | None = None
    bare_norms: bool = False
    decays: bool = False
    factors: Mapping[str, float | Array] = field(default_factory=dict)


class Parameters:
    """Reads the weights of a model while it is built."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        names: Names,
        config: DecoderConfig,
        storage: Storage,
        adapters: KeptAdapters | None = None,
    ) -> None:
        self._checkpoint, self._names, self._config, self._storage = checkpoint, names, config, storage
        self.adapters = adapters

    def embedding(self) -> Matrix:
        """Return the embedding, (vocabulary, hidden)."""
        config = self._config
        return self._checkpoint.matrix(f"{self._names.embedding}.weight", config.vocabulary, config.hidden)

    def head(self) -> Linear | None:
        """Return the head; None if it is tied to the embedding."""
        name, config = self._names.head, self._config
        if self._storage.tied is True:
            self._checkpoint.ignore([f"{name}.weight"])
            return None
        if self._storage.tied is None and not self._checkpoint.has(f"{name}.weight"):
            return None
        return self._linear(name, config.vocabulary, config.hidden)

    def positions(self) -> Matrix:
        """Return the table of learned positions: (position rows, hidden)."""
        config = self._config
        return self._checkpoint.matrix(f"{self._names.positions}.weight", config.position_rows, config.hidden)

    def embedding_norm(self) -> Norm | None:
        """Return the norm applied to the embeddings; None if there is none."""
        name = self._names.embedding_norm
        return None if name is None else self._norm(name, self._config.hidden)

    def layer_embedding(self, config: LayerInputs) -> Matrix:
        """Return the embeddings of all layers side by side: (vocabulary, layers * width)."""
        name, width = self._names.whole["layer_embedding"], len(self._config.layers) * config.width
        return self._checkpoint.matrix(f"{name}.weight", config.vocabulary, width)

    def layer_model(self, config: LayerInputs) -> Linear:
        """Return the projection of a token's embedding to a part of all layers' inputs."""
        width = len(self._config.layers) * config.width
        return self._linear(self._names.whole["layer_model"], width, self._config.hidden)

    def layer_norm(self, config: LayerInputs) -> Norm:
        """Return the norm of each layer's part of that projection."""
        return self._norm(self._names.whole["layer_norm"], config.width)

    def stream_products(self, role: str, count: int) -> list[Linear]:
        """Return the projections between the first stream and each of `count` others, stored separately or in one
        tensor."""
        name, hidden = self._names.whole[role], self._config.hidden
        if not self._checkpoint.has(f"{name}.weight"):
            return [self._linear(f"{name}.{index}", hidden, hidden) for index in range(count)]
        stack = Experts.of_stack(self._checkpoint.stack(f"{name}.weight", count, hidden, hidden), count)
        return [Linear(each, None) for each in stack.weights]

    def layer_scale(self, layer: int) -> float:
        """Return the factor of a layer's result, by default 1."""
        name = self._names.of(layer, "layer_scale")
        if name is None or not self._checkpoint.has(name):
            return 1.0
        return float(self._checkpoint.vector(name, 1)[0])

    def final_norm(self) -> Norm:
        """Return the final norm, (hidden,)."""
        return self._norm(self._names.norm, self._config.hidden)

    def norm(self, layer: int, role: str, size: int) -> Norm:
        """Return a norm of a layer; norms of queries and keys are in the order of their rows."""
        stored = self._norm(self._names.of(layer, role), size)
        if role not in ("q_norm", "k_norm") or not self._storage.interleaved or stored.weight is None:
            return stored
        order = self._turned(layer, size // self._config.heads_of(layer).size)
        return Norm(stored.weight[order], None if stored.bias is None else stored.bias[order])

    def has_norm(self, layer: int, role: str) -> bool:
        """True if a layer has the norm."""
        name = self._names.of(layer, role)
        if self._storage.bare_norms:
            return role in ("attention_norm", "mlp_norm")
        if role in ("q_norm", "k_norm", "mix_norm"):
            return name is not None and self._checkpoint.has(f"{name}.weight")
        return name is not None

    def norm_size(self, layer: int, role: str, sizes: tuple[int, ...]) -> int:
        """Return the size of a norm's weight: that of one head, or of all heads."""
        for size in sizes:
            if self._checkpoint.shape_is(f"{self._names.of(layer, role)}.weight", (size,)):
                return size
        raise InvalidModelError(f"{self._checkpoint.origin}: {self._names.of(layer, role)!r} has none of sizes {sizes}")

    def queries_keys_values(self, layer: int) -> list[Linear]:
        """Return the three projections in order, except for values that are keys, or keys of another layer."""
        heads, config = self._config.heads_of(layer), self._config.layers[layer]
        if config.shares is not None:
            self.ignore(layer, ("k", "v", "k_norm"))  # some files have them
            return [self._role(layer, "q", heads.queries, self._config.hidden)]
        if config.values_are_keys:
            widths = {"q": heads.queries, "k": heads.key_width}
            return [self._role(layer, role, width, self._config.hidden) for role, width in widths.items()]
        q, k, v = self.parts(layer, "qkv", ("q", "k", "v"), [heads.queries, heads.key_width, heads.key_width])
        if self._storage.interleaved:
            q, k = q.taken(self._turned(layer, heads.count)), k.taken(self._turned(layer, heads.keys))
        return [q, k, v]

    def _turned(self, layer: int, count: int) -> Array:
        """Return the rows of some heads of a layer, ordered for rotating halves."""
        rope, size = self._config.layers[layer].rope, self._config.heads_of(layer).size
        return _halves(count, size, size if rope is None else rope.size)

    def ignore(self, layer: int, roles: Sequence[str]) -> None:
        """Mark matmuls as unneeded, if present."""
        names = [self._names.of(layer, role) for role in roles]
        self._checkpoint.ignore([f"{name}.{part}" for name in names for part in ("weight", "bias")])

    def gated_queries_keys_values(self, layer: int) -> list[Linear]:
        """Return the three projections, and that of the attention gates (per head or element), stored separately or
        next to the queries of each head."""
        heads, hidden = self._config.heads_of(layer), self._config.hidden
        if self._names.of(layer, "attention_gate") is not None:
            width = heads.count if self.width(layer, "attention_gate") == heads.count else heads.queries
            return [*self.queries_keys_values(layer), self._role(layer, "attention_gate", width, hidden)]
        both = self._role(layer, "q", 2 * heads.queries, hidden)
        rows = np.arange(2 * heads.queries).reshape(heads.count, 2, heads.size)
        query, gate = (both.taken(rows[:, part].reshape(-1)) for part in range(2))
        key, value = (self._role(layer, role, heads.key_width, hidden) for role in ("k", "v"))
        return [query, key, value, gate]

    def latent_queries(self, layer: int, config: LatentConfig) -> Linear:
        """Return the query projection of latent attention: the unrotated parts of all heads, then the rotated parts."""
        count, size = self._config.heads, config.plain + config.rotated
        if config.query_rank:
            linear = self._role(layer, "q_b", count * size, config.query_rank)
        else:
            linear = self._role(layer, "q", count * size, self._config.hidden)
        rows = np.arange(count * size).reshape(count, size)
        turned = rows[:, config.plain :].reshape(-1)
        if config.interleaved:
            turned = turned[_halves(count, config.rotated, config.rotated)]
        return linear.taken(np.concatenate([rows[:, : config.plain].reshape(-1), turned]))

    def latent_row(self, layer: int, config: LatentConfig) -> Linear:
        """Return the projection to a token's row, before its norm and rotation."""
        linear = self._role(layer, "kv_a", config.width, self._config.hidden)
        if not config.interleaved:
            return linear
        turned = config.rank + _halves(1, config.rotated, config.rotated)
        return linear.taken(np.concatenate([np.arange(config.rank), turned]))

    def latent_keys(self, layer: int, config: LatentConfig) -> Experts:
        """Return each head's matrix that maps the unrotated part of its query to the width of a cached row."""
        count, name = self._config.heads, self._names.of(layer, "k_b")
        if name is not None and self._checkpoint.has(f"{name}.weight"):
            return Experts.of_stack(self._checkpoint.stack(f"{name}.weight", count, config.rank, config.plain), count)
        keys = self._latent_heads(layer, config).part(slice(config.plain))
        return Experts(tuple(_floats(each).transposed() for each in keys.weights))

    def latent_values(self, layer: int, config: LatentConfig) -> Experts:
        """Return each head's matrix that maps weighted sums of cached rows to its values."""
        count, name = self._config.heads, self._names.of(layer, "v_b")
        if name is not None and self._checkpoint.has(f"{name}.weight"):
            return Experts.of_stack(self._checkpoint.stack(f"{name}.weight", count, config.values, config.rank), count)
        return self._latent_heads(layer, config).part(slice(config.plain, None))

    def _latent_heads(self, layer: int, config: LatentConfig) -> Experts:
        """Return keys, then values, of each head."""
        count = self._config.heads
        whole = self._role(layer, "kv_b", count * (config.plain + config.values), config.rank)
        return Experts.of_stack(whole.weight, count)

    def linear(self, layer: int, role: str, rows: int, depth: int) -> Linear:
        """Return a linear layer of a mixer."""
        return self._role(layer, role, rows, depth)

    def width(self, layer: int, role: str) -> int:
        """Return the number of outputs of a linear layer whose width is not in the settings."""
        return self._checkpoint.shape(f"{self._names.of(layer, role)}.weight")[0]

    def head_products(self, layer: int, role: str, heads: int, size: int) -> Experts:
        """Return block-diagonal matmuls, stored as (heads, inputs, outputs) with their biases."""
        name, checkpoint = self._names.of(layer, role), self._checkpoint
        stored = Experts.of_stack(checkpoint.stack(f"{name}_weight", heads, size, size), heads)
        biases = checkpoint.array(f"{name}_bias", (heads, size))
        return Experts(tuple(_floats(each).transposed() for each in stored.weights), biases)

    def together(self, layer: int, widths: Mapping[str, int], depth: int) -> Linear:
        """Return one matmul of several roles with these numbers of outputs; float32 if their storage differs."""
        parts = [self._role(layer, role, width, depth) for role, width in widths.items()]
        if len(stacked(parts)) > 1:
            parts = [replace(each, weight=Matrix("F32", dequantized(each.weight), depth)) for each in parts]
        return joined(parts)

    def array(self, layer: int, role: str, shape: tuple[int, ...]) -> Array:
        """Return a float32 array, which a file may store with axes of 1, or with one axis split in two."""
        name = self._names.of(layer, role)
        assert name is not None
        return self._shaped(name, shape)

    def decay(self, layer: int, role: str, shape: tuple[int, ...]) -> Array:
        """Return the rates of the states, which are negative."""
        stored = self.array(layer, role, shape)
        return stored if self._storage.decays else -np.exp(stored)

    def weights(self, layer: int, role: str, shape: tuple[int, ...]) -> Array:
        """Return weights of a norm, or of a small matmul, as float32."""
        return self._shaped(f"{self._names.of(layer, role)}.weight", shape)

    def convolution(self, layer: int, role: str, channels: int, taps: int) -> tuple[Array, Array]:
        """Return weights (taps, channels) and biases of a depthwise convolution, possibly stored in three parts."""
        name = self._names.of(layer, role)
        parts = [f"{self._names.of(layer, f'{role}_{part}')}.weight" for part in "qkv"]
        if self._checkpoint.has(parts[0]):
            stored = [math.prod(self._checkpoint.shape(part)) // taps for part in parts]
            split = [self._shaped(part, (rows, taps)) for part, rows in zip(parts, stored, strict=True)]
            joined_weight = np.concatenate(split)
            if joined_weight.shape[0] != channels:
                raise InvalidModelError(f"{self._checkpoint.origin}: {parts} have {stored} channels, not {channels}")
            return np.ascontiguousarray(joined_weight.T), np.zeros(channels, np.float32)
        weight = self._shaped(f"{name}.weight", (channels, taps))
        has_bias = self._checkpoint.has(f"{name}.bias")
        bias = self._checkpoint.vector(f"{name}.bias", channels) if has_bias else np.zeros(channels, np.float32)
        return np.ascontiguousarray(weight.T), bias

    def _shaped(self, name: str, shape: tuple[int, ...]) -> Array:
        found = self._checkpoint.shape(name)
        axes = sum(size > 1 for size in found)
        if math.prod(found) != math.prod(shape) or axes > len(shape) + 1:
            raise InvalidModelError(f"{self._checkpoint.origin}: tensor {name!r} has shape {found}, expected {shape}")
        return self._checkpoint.array(name, found).reshape(shape)

    def shifts(self, layer: int, width: int) -> Array:
        """Weights (projections, width) of the previous token in the inputs of RWKV 7's projections: of queries, decays,
        keys, values, rates and, if the model has them, gates. Stored as one tensor, or one per projection."""
        fused = self._names.of(layer, "mix_shifts")
        if fused is not None and self._checkpoint.has(fused):
            return self._shaped(fused, (math.prod(self._checkpoint.shape(fused)) // width, width))
        name = self._names.of(layer, "mix_shift_{part}")
        assert name is not None
        return np.stack([self._shaped(name.format(part=part), (width,)) for part in "rwkvag"])

    def gate_up(self, layer: int) -> list[Linear]:
        """Return the two first matmuls of a gated MLP."""
        return self.parts(layer, "gate_up", ("gate", "up"), [self._config.intermediate_of(layer)] * 2)

    def up(self, layer: int) -> Linear:
        """Return the first matmul of an MLP without gates."""
        return self._role(layer, "up", self._config.intermediate_of(layer), self._config.hidden)

    def xielu(self, layer: int) -> XieluNumbers:
        """Return the trained parameters of a layer's activation. Raises OptionError if the format has none."""
        name = self._names.of(layer, "activation")
        if name is None:
            raise OptionError(
                f"{self._checkpoint.origin}: the activation xIELU is not supported for this type of model"
            )
        positive, negative = (float(self._shaped(f"{name}.{end}", (1,))[0]) for end in ("alpha_p", "alpha_n"))
        beta, epsilon = (
            float(self._shaped(f"{name}.{end}", (1,))[0]) if self._checkpoint.has(f"{name}.{end}") else default
            for end, default in (("beta", 0.5), ("eps", -1e-6))
        )
        return XieluNumbers.of_stored(positive, negative, beta, epsilon)

    def sinks(self, layer: int) -> Array | None:
        """Return each head's additional softmax score without a value, (heads,); None if there are none."""
        name = self._names.of(layer, "sinks")
        if name is None or not self._checkpoint.has(name):
            return None
        return self._checkpoint.vector(name, self._config.heads)

    def output(self, layer: int) -> Linear:
        """Return the output projection of attention."""
        return self._role(layer, "o", self._config.hidden, self._config.heads_of(layer).queries)

    def down(self, layer: int) -> Linear:
        """Return the down projection of the MLP."""
        return self._role(layer, "down", self._config.hidden, self._config.intermediate_of(layer))

    def router(self, layer: int, config: ExpertsConfig) -> Linear:
        """Return the router, including the scale of its inputs if there is one."""
        hidden = self._config.hidden
        linear = self._role(layer, "router", config.count, hidden)
        if not config.beside:
            return linear
        scale = self.array(layer, "router_scale", (hidden,)) * np.float32(hidden**-0.5)
        return replace(linear, weight=Matrix("F32", dequantized(linear.weight) * scale, hidden))

    def router_bias(self, layer: int, config: ExpertsConfig) -> Array:
        """Return the bias added to the router scores when experts are selected."""
        return self.array(layer, "router_bias", (config.count,))

    def expert_scale(self, layer: int, config: ExpertsConfig) -> Array:
        """Return the factor of each expert's result, (experts,)."""
        return self.array(layer, "expert_scale", (config.count,))

    def expert_gate_up(self, layer: int, config: ExpertsConfig) -> list[Experts]:
        """Return the two first matmuls of the experts' gated MLPs."""
        width, depth = config.intermediate, config.latent or self._config.hidden
        fused, gate = (self._names.of(layer, role) for role in ("expert_gate_up", "expert_gate"))
        if fused is not None and (gate is None or not self._checkpoint.has(f"{gate}.weight")):
            stack = self._stack(fused, config, 2 * width, depth)
            alternating = self._storage.alternating
            parts = [slice(at, None, 2) if alternating else slice(at * width, (at + 1) * width) for at in range(2)]
            return [stack.part(rows) for rows in parts]
        return [self._experts(layer, role, config, width, depth) for role in ("expert_gate", "expert_up")]

    def expert_down(self, layer: int, config: ExpertsConfig) -> Experts:
        """Return the down projections of the experts."""
        return self._experts(layer, "expert_down", config, config.latent or self._config.hidden, config.intermediate)

    def expert_up(self, layer: int, config: ExpertsConfig) -> Experts:
        """Return the first matmuls of experts without gates."""
        return self._experts(layer, "expert_up", config, config.intermediate, config.latent or self._config.hidden)

    def shared_gate_up(self, layer: int, config: ExpertsConfig) -> list[Linear]:
        """Return the two first matmuls of the shared MLP."""
        return self.parts(layer, "shared_gate_up", ("shared_gate", "shared_up"), [config.shared] * 2)

    def shared_up(self, layer: int, config: ExpertsConfig) -> Linear:
        """Return the first matmul of a shared MLP without gates."""
        return self._role(layer, "shared_up", config.shared, self._config.hidden)

    def shared_down(self, layer: int, config: ExpertsConfig) -> Linear:
        """Return the last matmul of the shared MLP."""
        return self._role(layer, "shared_down", self._config.hidden, config.shared)

    def shared_router(self, layer: int) -> Linear:
        """Return the one-output projection that scales the shared MLP."""
        name, hidden = f"{self._names.of(layer, 'shared_router')}.weight", self._config.hidden
        if self._checkpoint.shape_is(name, (hidden,)):
            return Linear.of_vector(self._checkpoint.vector(name, hidden))
        return self._role(layer, "shared_router", 1, hidden)

    def _experts(self, layer: int, role: str, config: ExpertsConfig, rows: int, depth: int) -> Experts:
        """Read one tensor, or one per expert."""
        name = self._names.of(layer, role)
        assert name is not None
        if "{expert}" not in name:
            return self._stack(name, config, rows, depth)
        each = [f"{name.format(expert=expert)}.weight" for expert in range(config.count)]
        return Experts(tuple(self._checkpoint.matrix(one, rows, depth) for one in each))

    def _stack(self, name: str, config: ExpertsConfig, rows: int, depth: int) -> Experts:
        """Read one tensor of all experts: (experts, rows, depth), or according to `Storage.stacked_rows` without
        ".weight"."""
        checkpoint, count = self._checkpoint, config.count
        if checkpoint.has(name):
            stacked_rows = self._storage.stacked_rows
            stored = checkpoint.stack(name, count, *((rows, depth) if stacked_rows else (depth, rows)))
            experts = Experts.of_stack(stored, count)
            if not stacked_rows:
                experts = Experts(tuple(each.transposed() for each in experts.weights))
        else:
            experts = Experts.of_stack(checkpoint.stack(f"{name}.weight", count, rows, depth), count)
        bias = next((name + end for end in (".bias", "_bias") if checkpoint.has(name + end)), None)
        return experts if bias is None else replace(experts, biases=checkpoint.array(bias, (count, rows)))

    def parts(self, layer: int, fused: str, roles: tuple[str, ...], widths: list[int]) -> list[Linear]:
        """Return separate matmuls, or the parts of a fused one."""
        depth = self._config.attention_inputs if fused == "qkv" else self._config.hidden
        first = self._names.of(layer, roles[0])
        if first is not None and self._checkpoint.has(f"{first}.weight"):
            return [self._role(layer, role, width, depth) for role, width in zip(roles, widths, strict=True)]
        fused_name = self._names.of(layer, fused)
        if fused_name is None or not self._checkpoint.has(f"{fused_name}.weight"):
            raise InvalidModelError(
                f"{self._checkpoint.origin} lacks the tensor '{first or fused_name}.weight'",
                "the checkpoint is not complete",
            )
        linear = self._adapted(layer, fused, self._linear(fused_name, sum(widths), depth))
        if fused == "qkv" and self._storage.grouped:
            linear = linear.taken(_ungrouped(self._config))
        ends = np.cumsum(widths)
        return [linear.taken(slice(end - width, end)) for end, width in zip(ends, widths, strict=True)]

    def _role(self, layer: int, role: str, rows: int, depth: int) -> Linear:
        name = self._names.of(layer, role)
        assert name is not None
        return self._scaled(self._adapted(layer, role, self._linear(name, rows, depth)), role)

    def _adapted(self, layer: int, role: str, linear: Linear) -> Linear:
        """Return the weight with a layer's low-rank update of a weight shared with other layers (Zamba2)."""
        inner, outer = (self._names.of(layer, f"{role}_adapter.{at}") for at in range(2))
        if inner is None:
            return linear
        weight, checkpoint = linear.weight, self._checkpoint
        rank = checkpoint.shape(f"{inner}.weight")[0]
        low = dequantized(checkpoint.matrix(f"{inner}.weight", rank, weight.depth))
        merged = dequantized(weight) + dequantized(checkpoint.matrix(f"{outer}.weight", weight.rows, rank)) @ low
        kind, dtype = (weight.kind, weight.data.dtype) if weight.kind in FLOAT_KINDS else ("F32", np.float32)
        return replace(linear, weight=Matrix(kind, merged.astype(dtype), weight.depth))

    def _scaled(self, linear: Linear, role: str) -> Linear:
        """Return the weight multiplied by the factor of its role."""
        factor = self._storage.factors.get(role)
        if factor is None:
            return linear
        if linear.bias is not None:
            raise OptionError(f"{self._checkpoint.origin}: biases of matmuls with factors ({role}) are not supported")
        return replace(linear, scale=np.broadcast_to(np.float32(factor), linear.weight.rows))

    def _linear(self, name: str, rows: int, depth: int) -> Linear:
        if self._storage.transposed and name not in (self._names.embedding, self._names.head):
            weight = self._checkpoint.matrix(f"{name}.weight", depth, rows).transposed()
        else:
            weight = self._checkpoint.matrix(f"{name}.weight", rows, depth)
        has_bias = self._checkpoint.has(f"{name}.bias")
        bias = self._checkpoint.vector(f"{name}.bias", rows) if has_bias else None
        changes = () if self.adapters is None else self.adapters.changes(name, rows, depth)
        return Linear(weight, bias, changes=changes)

    def _norm(self, name: str | None, size: int) -> Norm:
        if self._storage.bare_norms:
            return Norm(None)
        assert name is not None
        bare = self._checkpoint.has(name) and not self._checkpoint.has(f"{name}.weight")  # GGUF files of Falcon-H1
        stored = self._checkpoint.vector(name if bare else f"{name}.weight", size)
        weight = stored + np.float32(self._storage.norm_offset)
        has_bias = self._checkpoint.has(f"{name}.bias")
        return Norm(weight, self._checkpoint.vector(f"{name}.bias", size) if has_bias else None)


def _floats(weight: Matrix) -> Matrix:
    """Return a weight that can be transposed; quantized weights become float32."""
    return weight if weight.kind in FLOAT_KINDS else Matrix("F32", dequantized(weight), weight.depth)


def _halves(heads: int, size: int, rotated: int) -> Array:
    """Reorder rows so that rotated pairs, stored adjacent, are half the rotated size apart."""
    rows = np.arange(heads * size).reshape(heads, size)
    pairs = rows[:, :rotated].reshape(heads, rotated // 2, 2).swapaxes(1, 2).reshape(heads, rotated)
    return np.concatenate([pairs, rows[:, rotated:]], axis=1).reshape(-1)


def _ungrouped(config: DecoderConfig) -> Array:
    """Order rows as all queries, all keys, all values if they are stored per key head."""
    each = config.heads // config.key_heads
    shape = (config.key_heads, each + 2, config.head_size)
    rows = np.arange(math.prod(shape)).reshape(shape)
    return np.concatenate([rows[:, :each].reshape(-1), rows[:, each].reshape(-1), rows[:, each + 1].reshape(-1)])
