"""A decoder as a Relax module: maps tokens and caches to logits and caches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm_ffi
from tvm import relax, te, tirx
from tvm.ir import IRModule
from tvm.relax import op as R

from compiler.artifact.language_model import ADAPTER
from compiler.frontends.imported_model import TensorSpec
from compiler.frontends.llm.alternating_updates import StreamUpdate, merged, streams_of
from compiler.frontends.llm.attention import KeyValueCache, Positions, linear_biases, rotations, row_numbers
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.emitter import Emitter
from compiler.frontends.llm.feed_forward import feed_forward, normed_feed_forward
from compiler.frontends.llm.latent_attention import LatentAttention
from compiler.frontends.llm.layer_inputs import layer_inputs, layer_update
from compiler.frontends.llm.media_rows import MediaRows, mixed_rows
from compiler.frontends.llm.mixers import TimeMixing
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Parameters
from compiler.frontends.llm.recurrent import Mixer, TimeMixer, recurrent_mixer
from compiler.frontends.llm.rope import Rope
from compiler.frontends.llm.self_attention import SelfAttention
from compiler.frontends.llm.weights import Matrix
from compiler.passes.rewriting.block_weights import BlockWeight
from schedules.ir.tvm_types import Expr, Index

TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
OPERAND = "operand"  # a prefix
CAPACITY = "capacity"
POSITIONS, SEQUENCES, WANTED = "positions", "sequences", "wanted"


@dataclass(frozen=True)
class DecoderModule:
    """The Relax module of a decoder, and its states.

    `main(tokens, position, *states) -> (logits, *states)`: tokens int64 (1, n); position int64 (), the number of
    earlier tokens, omitted if no layer reads it. Logits are float32 (1, 1, vocabulary) of the last token, or (1, n,
    vocabulary) of all. The state of a layer with attention is keys and values (1, key heads, capacity, head size), or
    rows of latent attention (1, 1, capacity, width), with scales float32 (1, key heads, capacity) for int8; that of a
    recurrent mixer is described in `compiler.frontends.llm.mixers`, in float32.

    With adapters, `adapter` follows the position: int64 (), an adapter's number, 0 for none. With an encoder,
    `MediaRows.inputs` follow.

    For several sequences, `main(tokens, positions, sequences, wanted, *states)`: `positions` and `sequences` as in
    `compiler.frontends.llm.attention.Positions`, `wanted` int64 (m,) the tokens whose logits (1, m, vocabulary) are
    returned; each state has a leading axis of slots.

    If the options ask for them, operands of matmuls follow, float32 (1, n, depth); `operands` are their depths.
    """

    mod: IRModule
    states: tuple[TensorSpec, ...]
    operands: tuple[int, ...] = ()


def build_decoder(
    config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions, media: MediaRows | None = None
) -> DecoderModule:
    """Build the module of a decoder; `media`: an encoder's rows that replace tokens.

    Raises:
        InvalidModelError: the checkpoint lacks a tensor, or one has the wrong shape.
        OptionError: the precision does not fit the checkpoint.
    """
    return _Builder(config, parameters, options, media).build()


class _Builder(Emitter):
    """Builds one decoder."""

    def __init__(
        self, config: DecoderConfig, parameters: Parameters, options: LanguageModelOptions, media: MediaRows | None
    ) -> None:
        super().__init__(config, parameters, options)
        self.media = media
        self.media_inputs: list[Expr] = [] if media is None else list(media.variables())
        self.capacity, self.slots = tirx.Var(CAPACITY, "int64"), tirx.Var("slots", "int64")
        self.wanted: Expr | None = None

    def build(self) -> DecoderModule:
        """Return the module."""
        builder = self.builder
        tokens = relax.Var(TOKENS, relax.TensorType([1, self.length], "int64"))
        position, positions = self._positions()
        positions += [*self._adapter(), *self.media_inputs]
        embedding = self.parameters.embedding()
        dtype = self.options.cache_dtype(narrow=embedding.kind != "F32")
        rounds = self.options.rounds_attention(dtype, stored=embedding.kind)
        specs = [self._states(index, dtype) for index in range(len(self.config.layers))]
        states = [[self._variable(spec) for spec in each] for each in specs]
        with builder.function("main", [tokens, *positions, *(state for each in states for state in each)]):
            with builder.dataflow():
                results = self._body(embedding, tokens, position, states, rounds=rounds)
                output = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(output)
        if self.parameters.adapters is not None:
            self.parameters.adapters.check_applied(self.products.adapted)
        operands = tuple(int(each.ty.shape[-1]) for each in self.captured)
        return DecoderModule(builder.get(), tuple(spec for each in specs for spec in each), operands)

    def _states(self, index: int, dtype: str) -> list[TensorSpec]:
        """Return the state of a layer; caches are of type `dtype`."""
        config, layer = self.config, self.config.layers[index]
        specs = []
        if layer.attends and layer.shares is None:
            slots, latent, heads = "slots" if self.options.sequences else 1, config.latent, config.heads_of(index)
            shape = (slots, heads.keys, CAPACITY, heads.size if latent is None else latent.width)
            kinds = ("key", "value") if latent is None else ("latent",)
            specs += [TensorSpec(f"{kind}_{index}", shape, dtype) for kind in kinds]
            if dtype == "int8":
                specs += [TensorSpec(f"{kind}_scale_{index}", shape[:3], "float32") for kind in kinds]
        if layer.recurrent is not None:
            slots_axis: tuple[int | str, ...] = ("slots",) if self.options.sequences else ()
            own = layer.recurrent.states.items()
            specs += [TensorSpec(f"{name}_{index}", (*slots_axis, *shape), "float32") for name, shape in own]
        return specs

    def _variable(self, spec: TensorSpec) -> relax.Var:
        symbols: dict[int | str, Index] = {CAPACITY: self.capacity, "slots": self.slots}
        shape = [symbols.get(size, size) for size in spec.shape]
        return relax.Var(spec.name, relax.TensorType(shape, spec.dtype))

    @property
    def captured(self) -> list[Expr]:
        """Results that follow the caches."""
        return self.products.operands if self.options.captures else []

    def _positions(self) -> tuple[Positions, list[relax.Var]]:
        """Return the positions of a run's tokens, and the parameters they are computed from."""

        def parameter(name: str, *shape: Index) -> relax.Var:
            return relax.Var(name, relax.TensorType(list(shape), "int64"))

        if not self.options.sequences:
            start = parameter(POSITION)
            return Positions(start), [start] if self.config.counts else []
        tokens = parameter(POSITIONS, 2, self.length)
        sequences = parameter(SEQUENCES, tirx.Var("sequences", "int64"), 5)
        self.wanted = parameter(WANTED, tirx.Var("m", "int64"))
        return Positions(None, tokens, sequences), [tokens, sequences, self.wanted]

    def _adapter(self) -> list[relax.Var]:
        """Return the parameter for the adapter of a run, or of each token of several sequences."""
        kept = self.parameters.adapters
        if kept is None:
            return []
        several = self.options.sequences
        chosen = relax.Var(ADAPTER, relax.TensorType([self.length] if several else [], "int64"))

        def number(position: Expr, adapters: te.Tensor) -> Expr:
            return tirx.max(tirx.min(adapters(position) if several else adapters(), kept.count), tirx.const(0, "int64"))

        def of_rows(x: Expr) -> Expr:
            rows = x.ty.shape[1]
            if several and self.wanted is not None and not tvm_ffi.structural_equal(rows, self.length):
                return self.builder.emit_te(
                    lambda each, read: te.compute(
                        read.shape, lambda row: number(_within(read[row], each.shape[0]), each), name="adapters"
                    ),
                    chosen,
                    self.wanted,
                    primfunc_name_hint="adapters_of_wanted",
                )
            return self.builder.emit_te(
                lambda each: te.compute((rows,), lambda row: number(row, each), name="adapters"),
                chosen,
                primfunc_name_hint="adapters",
            )

        self.products.adapter_of_rows = of_rows
        return [chosen]

    def _body(
        self, embedding: Matrix, tokens: Expr, position: Positions, states: list[list[Expr]], *, rounds: bool
    ) -> list[Expr]:
        config = self.config
        table = self.products.table(embedding)
        x = self._embedded(table, tokens, position)
        if self.media is not None:
            x, position = mixed_rows(self, self.media, tokens, x, position, self.media_inputs)
        embedded = x
        ropes = self._rotations(position, self.length)
        bias = None if config.slopes is None else linear_biases(self.builder, config.slopes, self.capacity)
        inputs: list[Expr] = []
        if config.layer_inputs is not None:
            inputs = layer_inputs(self, config.layer_inputs, tokens, embedded)
        if config.alternating is not None:
            x = streams_of(self, config.alternating, x)
        updated: list[Expr] = []
        attention: dict[int, Mixer] = {}
        for index, (layer, layer_states) in enumerate(zip(config.layers, states, strict=True)):
            if index and self._narrows(index - 1) and any(each.attends for each in config.layers[index:]):
                position = self._wanted_positions(position)
                ropes = self._rotations(position, x.ty.shape[1])
                inputs = [self._wanted_rows(each) for each in inputs]
            mixers: list[Mixer] = []
            if layer.attends:
                cached = len(layer_states) - (0 if layer.recurrent is None else len(layer.recurrent.states))
                rows = layer_states[:cached] if layer.shares is None else list(attention[layer.shares].states)
                attention[index] = self._attention(index, rows, position, ropes.get(layer.rope), bias, rounds=rounds)
                mixers.append(attention[index])
                layer_states = layer_states[cached:]
            if layer.recurrent is not None:
                mixers.append(recurrent_mixer(self, index, layer.recurrent, layer_states, position))
            if config.before_mixers and layer.attends:
                x = self._hybrid_block(index, x, embedded, *mixers)
            elif config.alternating is not None:
                x = self._alternating_block(index, x, inputs[index], *mixers)
            else:
                x = self._block(index, x, mixers, inputs[index] if inputs else None)
            updated += [state for mixer in mixers for state in mixer.states]
        if config.alternating is not None:
            x = merged(self, config.alternating, x)
        if self.options.captures:
            x = self._wanted_rows(x)
        return [self._logits(self.normalized(x, self.parameters.final_norm()), table), *updated, *self.captured]

    def _attention(
        self, index: int, rows: list[Expr], position: Positions, angles: Expr | None, bias: Expr | None, *, rounds: bool
    ) -> Mixer:
        """Return a layer's attention over its state."""
        latent = self.config.latent
        if latent is not None:
            row, *scales = rows
            cache = KeyValueCache(row, None, position, tuple(scales), rounds)
            return LatentAttention(self, index, latent, angles, cache)
        keys, values, *scales = rows
        return SelfAttention(self, index, angles, bias, KeyValueCache(keys, values, position, tuple(scales), rounds))

    def _embedded(self, table: BlockWeight, tokens: Expr, position: Positions) -> Expr:
        """(1, n) -> (1, n, hidden)"""
        config = self.config
        x = self.scaled(self.products.rows(table, tokens), config.embedding_scale)
        if config.position_rows:
            positions = row_numbers(self.builder, position, config.position_offset, self.length)
            learned = self.products.exact_rows(self.parameters.positions(), positions)
            x = self.builder.emit(R.add(x, learned))
        norm = self.parameters.embedding_norm()
        return x if norm is None else self.normalized(x, norm)

    def _block(self, index: int, x: Expr, mixers: Sequence[Mixer], layer_input: Expr | None) -> Expr:
        """Apply one decoder layer, which may have its own input: (1, n, hidden) -> (1, n, hidden). The last layer with
        a state returns only the rows whose logits are needed."""
        layer = self.config.layers[index]
        if not mixers and not layer.feeds:
            return x
        first = self.normed(index, "attention_norm", x)
        heads = [mixer.heads(first) for mixer in mixers]
        if isinstance(layer.recurrent, TimeMixing) and layer.recurrent.shifts_channels:
            return self._shifted_block(index, x, heads[0], mixers[0])
        if self._narrows(index):
            x, first, *heads = (self._wanted_rows(each) for each in (x, first, *heads))
            layer_input = None if layer_input is None else self._wanted_rows(layer_input)
        updates = [mixer.output(each) for mixer, each in zip(mixers, heads, strict=True)]
        if self.config.parallel:
            second = self.normed(index, "mlp_norm", x) if self.has_norm(index, "mlp_norm") else first
            return self.residual(x, *updates, feed_forward(self, index, second))
        if not mixers:  # the only norm of such a layer is its MLP's
            return self.residual(x, feed_forward(self, index, first))
        if len(updates) > 1:
            updates = [self.builder.emit(R.add(*updates))]
        if layer.mixed is not None:
            x = self._mixed(first, updates[0], layer.mixed[:2])
            second = self.normed(index, "mlp_norm", x)
            return self._mixed(second, feed_forward(self, index, second), layer.mixed[2:])
        entered = x
        x = self.residual(x, self.normed(index, "post_attention_norm", updates[0]))
        if not layer.feeds:
            return x
        x = self.residual(x, normed_feed_forward(self, index, x, entered))
        if layer_input is not None and self.config.layer_inputs is not None:
            x = self.residual(x, layer_update(self, index, self.config.layer_inputs, x, layer_input))
        return self.scaled(x, self.parameters.layer_scale(index))

    def _alternating_block(self, index: int, x: Expr, layer_input: Expr, mixer: Mixer) -> Expr:
        """Apply a layer of Gemma 3n with its own input: (streams, n, hidden) -> (streams, n, hidden)."""
        assert self.config.alternating is not None
        assert self.config.layer_inputs is not None
        update = StreamUpdate(self, index, self.config.alternating)
        predicted = update.predicted(x)
        active = update.active(predicted)
        first = self.normed(index, "attention_norm", active)
        heads = mixer.heads(first)
        if self._narrows(index):
            predicted, active, first, heads, layer_input = map(
                self._wanted_rows, (predicted, active, first, heads, layer_input)
            )
        attended = self.residual(active, self.normed(index, "post_attention_norm", mixer.output(heads)))
        computed = self.scaled(self.residual(attended, update.laurel(first)), math.sqrt(0.5))
        computed = self.residual(computed, normed_feed_forward(self, index, computed, active))
        corrected = update.corrected(predicted, computed)
        read = update.scaled(update.active(corrected))
        return update.completed(corrected, layer_update(self, index, self.config.layer_inputs, read, layer_input))

    def _narrows(self, index: int) -> bool:
        """True for the layer that returns only the rows whose logits are needed: the last one with a state, if any.

        Nothing reads the other rows after its mixers.
        """
        if self.options.captures or (self.options.all_logits and self.wanted is None):
            return False
        layers = self.config.layers
        return index == max((at for at, each in enumerate(layers) if each.keeps), default=len(layers) - 1)

    def _wanted_positions(self, position: Positions) -> Positions:
        """Return the positions of the tokens whose logits are returned; for several sequences, each token is a run."""
        if self.wanted is None:
            rows = row_numbers(self.builder, position, 0, self.length)
            last = Positions(self.builder.emit_te(_last_number, rows, primfunc_name_hint="last_position"))
            if position.coordinates is None:
                return last
            kept = self.builder.emit_te(_last_column, position.coordinates, primfunc_name_hint="last_coordinates")
            return replace(last, coordinates=kept, axis=position.axis)
        operands = (position.tokens, position.sequences, self.wanted)
        emit = self.builder.emit_te
        tokens = emit(_selected_positions, position.tokens, self.wanted, primfunc_name_hint="wanted_positions")
        return Positions(None, tokens, emit(_single_runs, *operands, primfunc_name_hint="wanted_sequences"))

    def _rotations(self, position: Positions, length: Index) -> dict[Rope | None, Expr]:
        """Return the rotations of each distinct rotary embedding."""
        ropes = dict.fromkeys(layer.rope for layer in self.config.layers if layer.rope is not None)
        return {rope: rotations(self.builder, rope, position, length) for rope in ropes}

    def _hybrid_block(self, index: int, x: Expr, embedded: Expr, attention: Mixer, mixer: Mixer) -> Expr:
        """Apply a layer of Zamba2 (arXiv:2411.15242): x + mixer(norm(x + block(x and embeddings concatenated)))."""
        both = self.builder.emit(R.concat([x, embedded], axis=2))
        norm = self.parameters.norm(index, "block_norm", self.config.attention_inputs)
        hidden_state = attention.output(attention.heads(self.normalized(both, norm)))
        hidden_state = feed_forward(self, index, self.normed(index, "mlp_norm", hidden_state))
        hidden = self.config.hidden
        hidden_state = self.products.product(hidden_state, self.parameters.linear(index, "block_out", hidden, hidden))
        hidden_state = mixer.heads(self.normed(index, "attention_norm", self.residual(x, hidden_state)))
        if self._narrows(index):
            x, hidden_state = self._wanted_rows(x), self._wanted_rows(hidden_state)
        return self.residual(x, mixer.output(hidden_state))

    def _shifted_block(self, index: int, x: Expr, heads: Expr, mixer: Mixer) -> Expr:
        """Rest of a layer of RWKV, whose MLP has a token shift."""
        assert isinstance(mixer, TimeMixer)
        x = self.residual(x, mixer.output(heads))
        read = mixer.channels(self.normed(index, "mlp_norm", x))
        if self._narrows(index):
            x, read = self._wanted_rows(x), self._wanted_rows(read)
        return self.residual(x, feed_forward(self, index, read))

    def _mixed(self, x: Expr, update: Expr, weights: Sequence[float]) -> Expr:
        """Return the weighted sum of a normalized x and its update."""
        return self.builder.emit(R.add(self.scaled(x, weights[0]), self.scaled(update, weights[1])))

    def _wanted_rows(self, x: Expr) -> Expr:
        """Return the rows (1, n, width) of tokens whose logits are returned."""
        if self.wanted is not None:
            return self.builder.emit_te(_selected, x, self.wanted, primfunc_name_hint="wanted_tokens")
        return x if self.options.all_logits else self.builder.emit_te(last_row, x, primfunc_name_hint="last_token")

    def _logits(self, x: Expr, table: BlockWeight) -> Expr:
        head = self.parameters.head()
        products = self.products
        logits = products.with_table(x, table) if head is None else products.product(x, head, is_head=True)
        return self.capped(self.scaled(logits, self.config.logit_scale), self.config.logit_cap)


def _within(position: Expr, rows: Index) -> Expr:
    """Clamp a position to valid rows."""
    return tirx.max(tirx.min(position, rows - 1), tirx.const(0, "int64"))


def last_row(x: te.Tensor) -> te.Tensor:
    """Return the last row: (batch, n, width) -> (batch, 1, width)."""
    return te.compute((x.shape[0], 1, x.shape[2]), lambda b, _, k: x[b, x.shape[1] - 1, k], name="last")


def _last_number(rows: te.Tensor) -> te.Tensor:
    """Return the last of (1, n) numbers."""
    return te.compute((), lambda: rows[0, rows.shape[1] - 1], name="last")


def _last_column(rows: te.Tensor) -> te.Tensor:
    """Return the last of n numbers in each row: (3, n) -> (3, 1)."""
    return te.compute((rows.shape[0], 1), lambda row, _: rows[row, rows.shape[1] - 1], name="last")


def _selected_positions(tokens: te.Tensor, wanted: te.Tensor) -> te.Tensor:
    """Select tokens' positions and lengths (2, n): (2, m)."""
    return te.compute(
        (2, wanted.shape[0]), lambda part, row: tokens[part, _within(wanted[row], tokens.shape[1])], name="selected"
    )


def _single_runs(tokens: te.Tensor, sequences: te.Tensor, indices: te.Tensor) -> te.Tensor:
    """Turn each wanted token into a run in the slot of its sequence: (m, 5), see `Positions.sequences`."""
    sequence = te.reduce_axis((0, sequences.shape[0]), "sequence")

    def slot(row: Expr) -> Expr:
        index, first = _within(indices[row], tokens.shape[1]), sequences[sequence, 2]
        holds = tirx.all(first <= index, index < first + sequences[sequence, 3])
        return te.sum(tirx.Select(holds, sequences[sequence, 0], tirx.const(0, "int64")), axis=sequence)

    slots = te.compute(indices.shape, slot, name="slots")

    def element(row: Expr, part: Expr) -> Expr:
        position = tokens[0, _within(indices[row], tokens.shape[1])]
        values = (slots[row], position, row, tirx.const(1, "int64"), tirx.const(0, "int64"))
        result = values[-1]
        for index, value in enumerate(values[:-1]):
            result = tirx.if_then_else(part == index, value, result)
        return result

    return te.compute((indices.shape[0], 5), element, name="runs")


def _selected(x: te.Tensor, indices: te.Tensor) -> te.Tensor:
    """Select rows: (batch, n, width) -> (batch, m, width)."""

    def element(b: Expr, row: Expr, k: Expr) -> Expr:
        return x[b, _within(indices[row], x.shape[1]), k]

    return te.compute((x.shape[0], indices.shape[0], x.shape[2]), element, name="selected")
