"""Recurrent mixers of a decoder's layers, in Relax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from tvm import te, tirx
from tvm.relax import op as R

from compiler.frontends.llm.attention import Positions
from compiler.frontends.llm.emitter import Emitter, number
from compiler.frontends.llm.mixers import (
    GatedDelta,
    GatedRecurrence,
    LightningAttention,
    MatrixMemory,
    Recurrent,
    ShortConvolution,
    StateSpace,
    TimeMixing,
)
from compiler.frontends.llm.weights import Linear
from compiler.passes.rewriting.matching import as_constant
from schedules.ir.tvm_types import Expr
from schedules.sequence_mixers import (
    Columns,
    Convolution,
    DeltaRule,
    Scan,
    causal_convolution,
    decayed_maximum,
    gated_delta_rule,
    selective_scan,
)
from schedules.time_mixing import TimeMix, time_mix

_RATE = -8.0  # factor of the decay in RecurrentGemma
_LIGHTNING_EPSILON = _MEMORY_EPSILON = 1e-6


class Mixer(Protocol):
    """A mixer of one layer. `states` are the new values of its states, after `heads` was called."""

    @property
    def states(self) -> tuple[Expr, ...]:
        """Next values of the states."""

    def heads(self, x: Expr) -> Expr:
        """Return the mixer's result for normalized x (1, n, hidden), before the output projection: (1, n, width)."""

    def output(self, found: Expr) -> Expr:
        """Apply the output projection: (1, n, hidden)."""


def recurrent_mixer(
    model: Emitter, index: int, config: Recurrent, states: Sequence[Expr], position: Positions
) -> Mixer:
    """Return the mixer of a layer."""
    kind: Callable[..., Mixer] = _KINDS[type(config)]
    return kind(model, index, config, states, position)


class _Recurrent:
    """Code shared by the recurrent mixers."""

    output_role: str
    convolution_role: str

    def __init__(self, model: Emitter, index: int, config: Any, states: Sequence[Expr], position: Positions) -> None:
        self._model, self._index, self._config = model, index, config
        self._old, self._position, self._sequences = states, position, position.sequences
        self._new: dict[int, Expr] = {}

    @property
    def states(self) -> tuple[Expr, ...]:
        """Next values of the states."""
        return tuple(self._new[at] for at in range(len(self._old)))

    def output(self, found: Expr) -> Expr:
        """Apply the output projection."""
        model = self._model
        weight = model.parameters.linear(
            self._index, self.output_role, model.config.hidden, int(found.ty.shape.values[-1])
        )
        return model.products.product(found, weight)

    def _convolved(self, x: Columns, channels: int, **options: Any) -> Expr:
        """Convolve some channels: (n, channels)."""
        weight, bias = self._model.parameters.convolution(
            self._index, self.convolution_role, channels, self._config.taps
        )
        convolution = Convolution(
            x=x,
            weight=as_constant(weight),
            bias=as_constant(bias),
            window=self._old[0],
            sequences=self._sequences,
            **options,
        )
        result, self._new[0] = causal_convolution(self._model.builder, convolution)
        return result

    def _columns(self, x: Expr, roles: Sequence[tuple[str, int]]) -> list[Columns]:
        """Matmuls of x with the weights of several roles, given the number of outputs of each."""
        model = self._model
        hidden = model.config.hidden
        parts = [model.parameters.linear(self._index, role, width, hidden) for role, width in roles]
        return model.products.columns(x, parts)

    def _rows(self, value: Expr) -> Expr:
        """(1, n, width) -> (n, width)"""
        return self._emit(R.reshape(value, (self._model.length, value.ty.shape.values[-1])))

    def _batch(self, value: Expr) -> Expr:
        """(n, width) -> (1, n, width)"""
        return self._emit(R.reshape(value, (1, self._model.length, value.ty.shape.values[-1])))

    def _slice(self, columns: Columns, width: int) -> Expr:
        """(n, width)"""
        end = columns.start + width
        if columns.start == 0 and int(columns.data.ty.shape.values[-1]) == width:
            return columns.data
        return self._emit(
            R.strided_slice(columns.data, axes=[1], begin=[columns.start], end=[end], assume_inbound=True)
        )

    def _array(self, role: str, shape: tuple[int, ...]) -> Expr:
        return as_constant(self._model.parameters.array(self._index, role, shape))

    def _emit(self, value: Expr) -> Expr:
        return self._model.builder.emit(value)


class _ShortConvolution(_Recurrent):
    output_role, convolution_role = "conv_out", "conv"

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        width = self._config.width
        [whole] = self._columns(x, [("conv_in", 3 * width)])
        factor, gate, value = (Columns(whole.data, part * width) for part in range(3))
        return self._batch(self._convolved(value, width, factor=factor, gate=gate))


class _StateSpace(_Recurrent):
    output_role, convolution_role = "ssm_out", "ssm_conv"
    _config: StateSpace

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        return self._of_heads(x) if self._config.heads else self._of_channels(x)

    def _of_channels(self, x: Expr) -> Expr:
        """Mamba."""
        config, parameters = self._config, self._model.parameters
        [projected] = self._columns(x, [("ssm_in", 2 * config.inner)])
        convolved = self._convolved(projected, config.inner, activated=True)
        step, write, read = self._selected(convolved)
        decay = parameters.decay(self._index, "ssm_decay", (config.inner, config.sizes))
        scan = Scan(
            x=Columns(convolved),
            step=Columns(step),
            bias=None,
            decay=as_constant(np.ascontiguousarray(decay.T)),
            write=write,
            read=read,
            skip=self._array("ssm_skip", (config.inner,)),
            state=self._old[1],
            gate=Columns(projected.data, config.inner),
            sequences=self._sequences,
        )
        scanned, self._new[1] = selective_scan(self._model.builder, scan)
        return self._batch(scanned)

    def _selected(self, convolved: Expr) -> tuple[Expr, Columns, Columns]:
        """Return the steps (n, inner), and the write and read projections."""
        config, products, parameters = self._config, self._model.products, self._model.parameters
        widths = [config.rank, config.sizes, config.sizes]
        weight = parameters.linear(self._index, "ssm_selection", sum(widths), config.inner)
        whole = self._rows(products.product(self._batch(convolved), weight))
        parts = [Columns(whole, start) for start in (0, config.rank, config.rank + config.sizes)]
        if config.selection_norms != "none":
            roles = ("ssm_step_norm", "ssm_write_norm", "ssm_read_norm")
            triples = zip(parts, widths, roles, strict=True)
            parts = [Columns(self._selection_norm(self._slice(part, width), role)) for part, width, role in triples]
        low = self._batch(self._slice(parts[0], config.rank))
        step = products.product(low, parameters.linear(self._index, "ssm_step", config.inner, config.rank))
        return self._rows(self._model.softplus(step)), parts[1], parts[2]

    def _selection_norm(self, x: Expr, role: str) -> Expr:
        width = int(x.ty.shape.values[-1])
        weighted = self._config.selection_norms == "weighted"
        weights = self._model.parameters.weights(self._index, role, (width,)) if weighted else np.ones(width)
        scale = as_constant(weights.astype(np.float32))
        return self._emit(R.nn.rms_norm(x, scale, [-1], self._config.selection_epsilon))

    def _of_heads(self, x: Expr) -> Expr:
        """Mamba-2."""
        config, parameters, head_size = self._config, self._model.parameters, self._config.block
        [projected] = self._columns(x, [("ssm_in", config.inner + config.convolved + config.heads)])
        convolved = self._convolved(Columns(projected.data, config.inner), config.convolved, activated=True)
        shared = config.groups * config.sizes
        skip = np.repeat(parameters.array(self._index, "ssm_skip", (config.heads,)), head_size)
        scan = Scan(
            x=Columns(convolved),
            step=Columns(projected.data, config.inner + config.convolved),
            bias=self._array("ssm_step_bias", (config.heads,)),
            decay=as_constant(parameters.decay(self._index, "ssm_decay", (config.heads,))),
            write=Columns(convolved, config.inner),
            read=Columns(convolved, config.inner + shared),
            skip=as_constant(skip),
            state=self._old[1],
            gate=None if config.norm == "before" else projected,
            limits=config.limits,
            per_block=True,
            groups=config.groups,
            sequences=self._sequences,
        )
        scanned, self._new[1] = selective_scan(self._model.builder, scan)
        if config.norm != "none":
            scanned = self._group_norm(scanned)
        if config.norm == "before":
            gate = self._emit(R.nn.silu(self._slice(projected, config.inner)))
            scanned = self._emit(R.multiply(scanned, gate))
        return self._batch(scanned)

    def _group_norm(self, x: Expr) -> Expr:
        """Normalize by the root mean square over the channels of each group."""
        config, length = self._config, self._model.length
        group_size = config.inner // config.groups
        weight = self._model.parameters.weights(self._index, "ssm_norm", (config.inner,))
        parts = self._emit(R.reshape(x, (length, config.groups, group_size)))
        ones = as_constant(np.ones(group_size, np.float32))
        normalized = self._emit(R.nn.rms_norm(parts, ones, [-1], self._model.config.epsilon))
        whole = self._emit(R.reshape(normalized, (length, config.inner)))
        return self._emit(R.multiply(whole, as_constant(weight)))


class _GatedRecurrence(_Recurrent):
    output_role, convolution_role = "unit_out", "unit_conv"
    _config: GatedRecurrence

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        config, emit, width = self._config, self._emit, self._config.width
        outer, inner = self._columns(x, [("unit_gate", width), ("unit_in", width)])
        convolved = self._convolved(inner, width)
        size = width // config.heads
        blocks = emit(R.reshape(convolved, (1, self._model.length, config.heads, size)))
        gate, rate = (self._gate(blocks, role, size) for role in ("unit_input", "unit_rate"))
        stored = self._model.parameters.array(self._index, "unit_decay", (width,)).astype(np.float64)
        decay = (_RATE * np.logaddexp(0, stored)).astype(np.float32)[None]
        gated = emit(R.multiply(emit(R.multiply(convolved, gate)), self._share_of_inputs(rate, decay)))
        unit_step = Columns(emit(R.full((self._model.length, 1), number(1.0), "float32")))
        scanned, self._new[1] = selective_scan(
            self._model.builder,
            Scan(
                x=Columns(gated),
                step=Columns(rate),
                bias=None,
                decay=as_constant(decay),
                write=unit_step,
                read=unit_step,
                skip=as_constant(np.zeros(width, np.float32)),
                state=self._old[1],
                scaled=False,
                sequences=self._sequences,
            ),
        )
        opened = self._model.activated(self._index, self._slice(outer, width))
        return self._batch(emit(R.multiply(scanned, opened)))

    def _gate(self, blocks: Expr, role: str, size: int) -> Expr:
        """(n, width) of blocks (1, n, heads, size)"""
        weights = self._model.parameters.head_products(self._index, role, self._config.heads, size)
        found = self._emit(R.sigmoid(self._model.products.of_heads(blocks, weights)))
        return self._emit(R.reshape(found, (self._model.length, self._config.width)))

    def _share_of_inputs(self, rate: Expr, decay: np.ndarray) -> Expr:
        """Return sqrt(1 - kept**2) for the kept share of the state, 1 for the first token of a sequence: (n, width)."""
        position = self._position

        def compute(rate: te.Tensor, decay: te.Tensor, start: te.Tensor) -> te.Tensor:
            one, zero = tirx.const(1.0, "float32"), tirx.const(0.0, "float32")

            def element(row: Expr, channel: Expr) -> Expr:
                squared = tirx.exp(rate[row, channel] * decay[0, channel] * tirx.const(2.0, "float32"))
                is_first = position.position(start, row) <= 0
                return tirx.if_then_else(is_first, one, tirx.sqrt(tirx.max(one - squared, zero)))

            return te.compute(rate.shape, element, name="share_of_inputs")

        return self._model.builder.emit_te(
            compute, rate, as_constant(decay), position.operand, primfunc_name_hint="share_of_inputs"
        )


class _LightningAttention(_Recurrent):
    output_role = "lightning_out"
    _config: LightningAttention

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        config, emit, model = self._config, self._emit, self._model
        width, hidden = config.heads * config.size, model.config.hidden
        rows = np.arange(3 * width).reshape(config.heads, 3, config.size).swapaxes(0, 1).reshape(-1)
        qkv = model.parameters.linear(self._index, "lightning_qkv", 3 * width, hidden).taken(rows)
        gate = model.parameters.linear(self._index, "lightning_gate", width, hidden)
        both, gates = model.products.columns(x, [qkv, gate])
        opened = emit(R.nn.silu(self._slice(both, 3 * width)))
        decay = np.array(config.decays(self._index, len(model.config.layers)), np.float32)
        scan = Scan(
            x=Columns(opened, 2 * width),
            step=Columns(emit(R.full((model.length, config.heads), number(1.0), "float32"))),
            bias=None,
            decay=as_constant(decay),
            write=Columns(opened, width),
            read=Columns(opened),
            skip=as_constant(np.zeros(width, np.float32)),
            state=self._old[0],
            per_block=True,
            groups=config.heads,
            scaled=False,
            sequences=self._sequences,
        )
        scanned, self._new[0] = selective_scan(model.builder, scan)
        weight = as_constant(model.parameters.weights(self._index, "lightning_norm", (width,)))
        normed = emit(R.nn.rms_norm(scanned, weight, [-1], _LIGHTNING_EPSILON))
        return self._batch(emit(R.multiply(normed, emit(R.sigmoid(self._slice(gates, width))))))


class _GatedDelta(_Recurrent):
    output_role, convolution_role = "delta_out", "delta_conv"
    _config: GatedDelta

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        config, parameters, length = self._config, self._model.parameters, self._model.length
        whole, gate, rate, step = self._projected(x)
        convolved = self._convolved(whole, config.convolved, activated=True)
        rule = DeltaRule(
            query=Columns(convolved),
            key=Columns(convolved, config.keys),
            value=Columns(convolved, 2 * config.keys),
            step=step,
            rate=rate,
            decay=as_constant(parameters.decay(self._index, "delta_decay", (config.heads,))),
            bias=self._array("delta_step_bias", (config.steps,)),
            state=self._old[1],
            key_heads=config.key_heads,
            tiled=config.tiled,
            rate_scale=config.rate_scale,
            sequences=self._sequences,
        )
        output, self._new[1] = gated_delta_rule(self._model.builder, rule)
        weight = parameters.weights(self._index, "delta_norm", (config.value_size,))
        heads = self._emit(R.reshape(output, (length, config.heads, config.value_size)))
        epsilon = self._model.config.epsilon if config.epsilon is None else config.epsilon
        normed = self._emit(R.nn.rms_norm(heads, as_constant(weight), [-1], epsilon))
        flat = self._emit(R.reshape(normed, (length, config.values)))
        activation = R.nn.silu if config.gate == "silu" else R.sigmoid
        gates = self._emit(activation(self._slice(gate, config.values)))
        return self._batch(self._emit(R.multiply(flat, gates)))

    def _projected(self, x: Expr) -> list[Columns]:
        """Return queries, keys and values; gates; rates; steps."""
        config, products = self._config, self._model.products
        if config.layout != "low-rank":
            return products.columns(x, self._parts())
        size = config.value_size
        inner = [("delta_rate", config.heads), ("delta_step_low", size), ("delta_gate_low", size)]
        parameters, hidden = self._model.parameters, self._model.config.hidden
        linears = [self._whole(), *(parameters.linear(self._index, role, width, hidden) for role, width in inner)]
        qkv, rate, *low = products.columns(x, linears)
        outer = [("delta_step", config.steps), ("delta_gate", config.values)]
        [step], [gate] = (
            products.columns(self._batch(self._slice(each, size)), [parameters.linear(self._index, role, width, size)])
            for each, (role, width) in zip(low, outer, strict=True)
        )
        return [qkv, gate, rate, step]

    def _whole(self) -> Linear:
        """Return the matmul of queries, keys and values, whose weights are three tensors."""
        config = self._config
        widths = {"delta_q": config.keys, "delta_k": config.keys, "delta_v": config.values}
        return self._model.parameters.together(self._index, widths, self._model.config.hidden)

    def _parts(self) -> list[Linear]:
        """Return the matmuls of queries, keys and values; gates; rates; steps."""
        config, parameters, hidden = self._config, self._model.parameters, self._model.config.hidden
        values_per_key = config.heads // config.key_heads

        def linear(role: str, width: int) -> Linear:
            return parameters.linear(self._index, f"delta_{role}", width, hidden)

        if config.layout in ("separate", "parts"):
            widths = {"gate": config.values, "rate": config.heads, "step": config.heads}
            qkv = linear("qkv", config.convolved) if config.layout == "separate" else self._whole()
            return [qkv, *(linear(role, width) for role, width in widths.items())]
        rates = linear("rates", 2 * config.heads)
        heads = np.arange(2 * config.heads).reshape(config.key_heads, 2, values_per_key)
        rate, step = (rates.taken(heads[:, part].reshape(-1)) for part in range(2))
        if config.layout == "mixed":
            return [linear("qkv", config.convolved), linear("gate", config.values), rate, step]
        qkv = linear("joined", config.convolved + config.values)
        rows = np.arange(config.convolved + config.values).reshape(config.key_heads, -1)
        ends = np.cumsum([config.key_size, config.key_size, values_per_key * config.value_size])
        query, key, value, gate = (part.reshape(-1) for part in np.split(rows, ends, axis=1))
        return [qkv.taken(np.concatenate([query, key, value])), qkv.taken(gate), rate, step]


class _MatrixMemory(_Recurrent):
    """States are stored without the common factor that the paper divides them by: gates are capped, so states stay
    within float32's range. Only the epsilon of the result's divisor needs the factor."""

    output_role = "memory_out"
    _config: MatrixMemory

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        config, emit, model = self._config, self._emit, self._model
        keys, values = config.heads * config.key_size, config.heads * config.value_size
        roles = ("memory_q", "memory_k", "memory_v", "memory_gate")
        parts = model.parameters.parts(self._index, "memory_qkv_gate", roles, [keys, keys, values, values])
        parts += model.parameters.parts(
            self._index, "memory_gates", ("memory_input", "memory_forget"), [config.heads] * 2
        )
        query, key, value, gate, *gates = model.products.columns(x, parts)
        opening, forgetting = (model.capped(self._slice(each, config.heads), config.cap) for each in gates)
        step = self._model.softplus(emit(R.negative(forgetting)))
        write = emit(R.exp(opening))
        scaled = emit(R.multiply(self._slice(query, keys), number(config.key_size**-0.5)))
        shape = (model.length, config.heads, config.value_size)
        columns = emit(R.expand_dims(write, 2))
        weighted_values = emit(R.multiply(emit(R.reshape(self._slice(value, values), shape)), columns))
        weighted_values = emit(R.reshape(weighted_values, (model.length, values)))
        scanned = self._scanned(0, weighted_values, step, key, scaled)
        total = emit(R.maximum(emit(R.abs(self._scanned(1, write, step, key, scaled))), number(1.0)))
        logs = emit(R.negative(step))
        largest, self._new[2] = decayed_maximum(model.builder, opening, logs, self._old[2], self._sequences)
        total = emit(R.add(total, emit(R.multiply(emit(R.exp(largest)), number(_MEMORY_EPSILON)))))
        heads = emit(R.divide(emit(R.reshape(scanned, shape)), emit(R.expand_dims(total, 2))))
        norm = model.parameters.norm(self._index, "memory_norm", values)
        assert norm.weight is not None
        ones, zeros = (as_constant(make(config.value_size, np.float32)) for make in (np.ones, np.zeros))
        normed = emit(R.nn.layer_norm(heads, ones, zeros, [-1], model.config.epsilon))
        normed = emit(R.multiply(emit(R.reshape(normed, (model.length, values))), as_constant(norm.weight)))
        if norm.bias is not None:
            normed = emit(R.add(normed, as_constant(norm.bias)))
        return self._batch(emit(R.multiply(normed, emit(R.sigmoid(self._slice(gate, values))))))

    def _scanned(self, state: int, values: Expr, step: Expr, write: Columns, read: Expr) -> Expr:
        """Scan one of the states."""
        heads = self._config.heads
        scan = Scan(
            x=Columns(values),
            step=Columns(step),
            bias=None,
            decay=as_constant(np.full(heads, -1.0, np.float32)),
            write=write,
            read=Columns(read),
            skip=as_constant(np.zeros(int(values.ty.shape.values[-1]), np.float32)),
            state=self._old[state],
            per_block=True,
            groups=heads,
            scaled=False,
            sequences=self._sequences,
        )
        found, self._new[state] = selective_scan(self._model.builder, scan)
        return found


class TimeMixer(_Recurrent):
    """The mixer of RWKV 7, and the token shift of its MLP."""

    output_role = "mix_out"
    _config: TimeMixing

    def heads(self, x: Expr) -> Expr:
        """See `Mixer.heads`."""
        config, model, width = self._config, self._model, self._config.width
        query, step, key, value, rate, gate = self._shifted(x)
        values = self._mixed_values(value)
        weights = {role: self._array(f"mix_{role}", (width,)) for role in ("removal", "rate_share", "bonus")}
        norm = (
            model.parameters.norm(self._index, "mix_norm", width) if model.has_norm(self._index, "mix_norm") else None
        )
        scale, bias = (None, None) if norm is None else (norm.weight, norm.bias)
        mix = TimeMix(
            query=self._projected(query, "query"),
            key=self._projected(key, "key"),
            value=Columns(values),
            decay=self._low_rank(step, "decay", R.tanh),
            rate=self._low_rank(rate, "rate"),
            gate=None if gate is None else self._low_rank(gate, "gate", R.sigmoid),
            **weights,
            scale=None if scale is None else as_constant(scale),
            bias=None if bias is None else as_constant(bias),
            state=self._old[1],
            epsilon=config.epsilon,
            key_epsilon=config.key_epsilon,
            sequences=self._sequences,
        )
        output, self._new[1] = time_mix(model.builder, mix)
        return self._batch(output)

    def channels(self, x: Expr) -> Expr:
        """Token shift of the MLP's normalized input (1, n, hidden)."""
        share = self._model.parameters.array(self._index, "channel_shift", (self._config.width,))
        return self._batch(self._shift(x, 2, np.stack([share, 1 - share])))

    def _shift(self, x: Expr, state: int, weight: np.ndarray) -> Expr:
        """Weighted sum (n, width) of the previous and the current token, with weights (2, width)."""
        zeros = as_constant(np.zeros(weight.shape[1], np.float32))
        convolution = Convolution(
            x=Columns(self._rows(x)),
            weight=as_constant(weight.astype(np.float32)),
            bias=zeros,
            window=self._old[state],
            sequences=self._sequences,
        )
        shifted, self._new[state] = causal_convolution(self._model.builder, convolution)
        return shifted

    def _shifted(self, x: Expr) -> list[Expr | None]:
        """Inputs of the projections of queries, decays, keys, values, rates and gates, the last None without gates."""
        width = self._config.width
        change = self._batch(self._shift(x, 0, np.tile(np.array([[1.0], [-1.0]]), width)))
        parts: list[Expr | None] = []
        for share in self._model.parameters.shifts(self._index, width):
            weighted = self._emit(R.multiply(change, as_constant(share)))
            parts.append(self._emit(R.add(x, weighted)))
        return [*parts, None][:6]

    def _projected(self, x: Expr, role: str) -> Columns:
        width = self._config.width
        [found] = self._model.products.columns(
            x, [self._model.parameters.linear(self._index, f"mix_{role}", width, width)]
        )
        return found

    def _low_rank(self, x: Expr, role: str, activation: Callable[[Expr], Expr] | None = None) -> Columns:
        """Low-rank projection in its stored precision: it is small, and errors of decays accumulate in the state."""
        parameters, products, width = self._model.parameters, self._model.products, self._config.width
        rank = parameters.width(self._index, f"mix_{role}_low")
        low = products.exact(x, parameters.linear(self._index, f"mix_{role}_low", rank, width))
        low = low if activation is None else self._emit(activation(low))
        return Columns(self._rows(products.exact(low, parameters.linear(self._index, f"mix_{role}", width, rank))))

    def _mixed_values(self, x: Expr) -> Expr:
        """Values (n, width), which later layers interpolate with those of the first layer."""
        model, emit = self._model, self._emit
        value = self._slice(self._projected(x, "value"), self._config.width)
        if model.first_values is None:
            model.parameters.ignore(self._index, ("mix_first", "mix_first_low"))  # some files have them
            model.first_values = value
            return value
        share = emit(R.sigmoid(self._low_rank(x, "first").data))
        return emit(R.add(value, emit(R.multiply(emit(R.subtract(model.first_values, value)), share))))


_KINDS: dict[type, Callable[..., Mixer]] = {
    ShortConvolution: _ShortConvolution,
    StateSpace: _StateSpace,
    GatedRecurrence: _GatedRecurrence,
    GatedDelta: _GatedDelta,
    LightningAttention: _LightningAttention,
    MatrixMemory: _MatrixMemory,
    TimeMixing: TimeMixer,
}
