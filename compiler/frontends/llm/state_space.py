"""Mamba and Mamba-2 as Relax modules: tokens and states in, logits and states out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import IRModule
from tvm.relax import op as R

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import MOST_LAYERS
from compiler.frontends.llm.decoder import TOKENS, last_row
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.products import Products
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.settings import MOST_SIZE, Settings
from compiler.frontends.llm.state_scan import ScanOperands, causal_convolution, selective_scan
from compiler.frontends.llm.state_space_weights import StateSpaceWeights
from compiler.frontends.llm.weights import Array, Checkpoint
from compiler.passes.rewriting.matching import as_constant

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr

STATE_SPACE = ("mamba", "mamba2")


@dataclass(frozen=True)
class Numbers:
    """Numeric metadata of an architecture; values out of range raise InvalidModelError."""

    file: GgufFile
    architecture: str

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, or the only value of a list."""
        name = f"{self.architecture}.{key}"
        value = self.file.value(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidModelError(f"{self.file.path}: its metadata '{name}' is {str(value)[:80]}, not a number")
        return value

    def limit(self, key: str) -> float | None:
        """A number; None if missing or 0."""
        return self.number(key, 0.0) or None

    def count(self, key: str, default: float | None = None, *, most: int = 1 << 31) -> int:
        """An integer from 1 to `most`."""
        value = self.number(key, default)
        if value < 1 or value != int(value) or value > most:
            raise InvalidModelError(
                f"{self.file.path}: its metadata '{self.architecture}.{key}' is {value}, not a size"
            )
        return int(value)


@dataclass(frozen=True)
class StateSpaceConfig:
    """A state space model.

    Attributes:
        kind: one of `STATE_SPACE`.
        hidden, vocabulary, layers, epsilon: as of `DecoderConfig`.
        inner: channels of the scan.
        sizes: places of the state of a channel.
        taps: of the convolution.
        rank: width of what steps are computed from (Mamba).
        heads, groups: of channels that share a step, and those that share what is written and read (Mamba-2).
        limits: of the steps (Mamba-2).
        tied: whether the head is the embedding.
    """

    kind: str
    hidden: int
    vocabulary: int
    layers: int
    epsilon: float
    inner: int
    sizes: int
    taps: int
    rank: int
    heads: int
    groups: int
    limits: tuple[float, float]
    tied: bool

    @property
    def convolved(self) -> int:
        """Channels of the convolution."""
        return self.inner if self.kind == "mamba" else self.inner + 2 * self.groups * self.sizes

    @property
    def states(self) -> dict[str, tuple[int, int]]:
        """Names and shapes of the states, in the order of the layers."""
        shapes = {"rows": (self.taps - 1, self.convolved), "state": (self.sizes, self.inner)}
        return {f"{name}_{layer}": shape for layer in range(self.layers) for name, shape in shapes.items()}


def read_gguf_state_space(file: GgufFile, kind: str) -> tuple[StateSpaceConfig, Checkpoint]:
    """The configuration and weights of a GGUF file of one of `STATE_SPACE`.

    Raises InvalidModelError, or OptionError for settings that are not supported.
    """
    numbers = Numbers(file, kind)
    if file.value(f"{kind}.ssm.dt_b_c_rms"):
        raise OptionError(f"{file.path}: norms of steps, as Falcon Mamba has them, are not supported")
    count = numbers.count
    hidden, inner, rank = count("embedding_length"), count("ssm.inner_size"), count("ssm.time_step_rank")
    heads = rank if kind == "mamba2" else inner
    groups = count("ssm.group_count", 1) if kind == "mamba2" else 1
    if inner % heads or heads % groups:
        raise InvalidModelError(f"{file.path}: {inner} channels, {heads} heads and {groups} groups do not fit together")
    checkpoint = Checkpoint(file, str(file.path))
    config = StateSpaceConfig(
        kind=kind,
        hidden=hidden,
        vocabulary=checkpoint.shape("token_embd.weight")[0],
        layers=count("block_count", most=MOST_LAYERS),
        epsilon=numbers.number("attention.layer_norm_rms_epsilon"),
        inner=inner,
        sizes=count("ssm.state_size"),
        taps=count("ssm.conv_kernel"),
        rank=rank,
        heads=heads,
        groups=groups,
        limits=(0.0, math.inf),
        tied=not checkpoint.has("output.weight"),
    )
    return config, checkpoint


def read_state_space(folder: Path) -> tuple[StateSpaceConfig, Checkpoint]:
    """The configuration and weights of a folder of the transformers library.

    Raises StorageError, InvalidModelError, or OptionError for settings that are not supported.
    """
    values = read_json(folder / "config.json")
    kind = str(values["model_type"])
    defaults: dict[str, Any] = {"expand": 2, "conv_kernel": 4, "layer_norm_epsilon": 1e-5, "n_groups": 8}
    defaults |= {"tie_word_embeddings": kind == "mamba", "state_size": 16 if kind == "mamba" else 128}
    settings = Settings(values, folder / "config.json", defaults)
    settings.refuse("hidden_act", "this activation", unless="silu")
    hidden = settings.size("hidden_size")
    expanded = settings.positive("expand") * hidden
    inner = int(min(expanded, MOST_SIZE + 1))
    if kind == "mamba" and settings.get("intermediate_size") is not None:
        inner = settings.size("intermediate_size")
    heads = settings.size("num_heads") if kind == "mamba2" else inner
    groups = settings.size("n_groups") if kind == "mamba2" else 1
    layers = settings.size("num_hidden_layers")
    if layers > MOST_LAYERS or inner % heads or heads % groups:
        raise OptionError(f"{settings.path}: {layers} layers of {inner} channels, {heads} heads and {groups} groups")
    if not 1 <= inner <= MOST_SIZE:
        raise InvalidModelError(f"{settings.path}: 'expand' makes {inner} channels")
    low, high = _limits(settings)
    auto = settings.get("time_step_rank") in (None, "auto")
    config = StateSpaceConfig(
        kind=kind,
        hidden=hidden,
        vocabulary=settings.size("vocab_size"),
        layers=layers,
        epsilon=settings.positive("layer_norm_epsilon"),
        inner=inner,
        sizes=settings.size("state_size"),
        taps=settings.size("conv_kernel"),
        rank=-(-hidden // 16) if auto else settings.size("time_step_rank"),
        heads=heads,
        groups=groups,
        limits=(low, high),
        tied=settings.flag("tie_word_embeddings"),
    )
    return config, Checkpoint(SafetensorsFolder(folder), str(folder))


def _limits(settings: Settings) -> tuple[float, float]:
    """The limits of steps; JSON has infinity as a string, a literal or an object."""
    limits = settings.get("time_step_limit") or (0.0, np.inf)
    values: list[Any] = [each.get("__float__") if isinstance(each, dict) else each for each in limits]
    try:
        low, high = (float(each) for each in values)
    except (TypeError, ValueError) as error:
        raise InvalidModelError(
            f"{settings.path}: 'time_step_limit' is {str(limits)[:80]!r}, not two numbers"
        ) from error
    return low, high


def build_state_space(config: StateSpaceConfig, weights: StateSpaceWeights, options: LanguageModelOptions) -> IRModule:
    """The module `main(tokens, *states) -> (logits, *states)`: tokens int64 (1, n), logits float32 of the last token,
    or of all; states float32.

    Raises:
        InvalidModelError: the checkpoint lacks a tensor, or one has another shape.
        OptionError: an option does not apply to such models.
    """
    if options.sequences or options.cache is not None or options.captures or options.grams:
        raise OptionError("sequences, cache and calibration do not apply to state space models")
    return _Builder(config, weights, options).build()


class _Builder:
    """One model under construction."""

    def __init__(self, config: StateSpaceConfig, weights: StateSpaceWeights, options: LanguageModelOptions) -> None:
        self.config, self._weights, self._options = config, weights, options
        self._builder = relax.BlockBuilder()
        self._products = Products(self._builder, options)
        self._length = tirx.Var("n", "int64")
        self._head_size = config.inner // config.heads

    def build(self) -> IRModule:
        """The module."""
        tokens = relax.Var(TOKENS, relax.TensorType([1, self._length], "int64"))
        states = [relax.Var(name, relax.TensorType(shape, "float32")) for name, shape in self.config.states.items()]
        with self._builder.function("main", [tokens, *states]):
            with self._builder.dataflow():
                output = self._builder.emit_output(relax.Tuple(self._body(tokens, states)))
            self._builder.emit_func_output(output)
        return self._builder.get()

    def _body(self, tokens: Expr, states: list[Expr]) -> list[Expr]:
        config = self.config
        table = self._products.table(self._weights.table(config.vocabulary, config.hidden))
        x = self._products.rows(table, tokens)
        updated: list[Expr] = []
        for layer in range(config.layers):
            mixed, *after = self._mixer(layer, self._norm(x, "norm", layer), states[2 * layer :])
            x = self._emit(R.add(x, mixed))
            updated += after
        if not self._options.all_logits:
            x = self._builder.emit_te(last_row, x, primfunc_name_hint="last_token")
        x = self._norm(x, "final_norm")
        if config.tied:
            self._weights.ignore_head()
            return [self._products.with_table(x, table), *updated]
        head = self._weights.linear("head", 0, config.vocabulary, config.hidden)
        return [self._products.product(x, head, is_head=True), *updated]

    def _mixer(self, layer: int, x: Expr, states: list[Expr]) -> list[Expr]:
        """(result (1, n, hidden), rows, state)"""
        config, weights = self.config, self._weights
        if config.kind == "mamba":
            hidden, gate = self._split(self._in(layer, x, 2 * config.inner), [config.inner, config.inner])
            convolved, rows = self._convolved(layer, hidden, states[0])
            step, write, read = self._selected(layer, convolved)
            decay = np.ascontiguousarray(weights.decay(layer, (config.inner, config.sizes)).T)
            skip = weights.array("skip", layer, (config.inner,))
        else:
            widths = [config.inner, config.convolved, config.heads]
            gate, hidden, step = self._split(self._in(layer, x, sum(widths)), widths)
            found, rows = self._convolved(layer, hidden, states[0])
            shared = config.groups * config.sizes
            convolved, write, read = self._split(found, [config.inner, shared, shared])
            step = self._steps_of_heads(layer, step)
            each = self._head_size
            decay = np.repeat(weights.decay(layer, (config.heads,)), each)[None]
            skip = np.repeat(weights.array("skip", layer, (config.heads,)), each)
        grouped = (self._length, config.groups, config.sizes)
        write, read = (self._emit(R.reshape(each, grouped)) for each in (write, read))
        operands = ScanOperands(convolved, step, as_constant(decay), write, read, as_constant(skip), states[1])
        result, state = selective_scan(self._builder, operands)
        result = self._emit(R.multiply(result, self._emit(R.nn.silu(gate))))
        if config.kind == "mamba2":
            result = self._group_norm(result, weights.array("group_norm", layer, (config.inner,)))
        result = self._emit(R.reshape(result, (1, self._length, config.inner)))
        out = weights.linear("out", layer, config.hidden, config.inner)
        return [self._products.product(result, out), rows, state]

    def _in(self, layer: int, x: Expr, width: int) -> Expr:
        """The first product: (n, width)."""
        found = self._products.product(x, self._weights.linear("in", layer, width, self.config.hidden))
        return self._emit(R.reshape(found, (self._length, width)))

    def _convolved(self, layer: int, x: Expr, state: Expr) -> tuple[Expr, Expr]:
        weight, bias = map(as_constant, self._weights.convolution(layer, self.config.convolved, self.config.taps))
        found, rows = causal_convolution(self._builder, x, state, weight, bias)
        return self._emit(R.nn.silu(found)), rows

    def _selected(self, layer: int, x: Expr) -> list[Expr]:
        """Mamba: the steps, and what is written and read."""
        config = self.config
        widths = [config.rank, config.sizes, config.sizes]
        found = self._products.product(x, self._weights.linear("selection", layer, sum(widths), config.inner))
        low, write, read = self._split(found, widths)
        step = self._products.product(low, self._weights.linear("step", layer, config.inner, config.rank))
        return [self._softplus(step), write, read]

    def _steps_of_heads(self, layer: int, step: Expr) -> Expr:
        """Mamba-2: the steps of heads, for each channel."""
        config = self.config
        bias = as_constant(self._weights.array("step_bias", layer, (config.heads,)))
        step = self._softplus(self._emit(R.add(step, bias)))
        low, high = config.limits
        if low > 0 or np.isfinite(high):
            step = self._emit(R.clip(step, low, min(high, float(np.finfo(np.float32).max))))
        return self._emit(R.repeat(step, self._head_size, axis=1))

    def _softplus(self, x: Expr) -> Expr:
        """log(1 + exp(x)), without overflow."""
        small = self._emit(R.exp(self._emit(R.negative(self._emit(R.abs(x))))))
        return self._emit(R.add(self._emit(R.nn.relu(x)), self._emit(R.log(self._emit(R.add(small, _one()))))))

    def _group_norm(self, x: Expr, weight: Array) -> Expr:
        """Root mean square over the channels of each group."""
        config = self.config
        each = config.inner // config.groups
        parts = self._emit(R.reshape(x, (self._length, config.groups, each)))
        ones = as_constant(np.ones(each, np.float32))
        normalized = self._emit(R.nn.rms_norm(parts, ones, [-1], config.epsilon))
        whole = self._emit(R.reshape(normalized, (self._length, config.inner)))
        return self._emit(R.multiply(whole, as_constant(weight)))

    def _norm(self, x: Expr, role: str, layer: int = 0) -> Expr:
        weight = self._weights.array(role, layer, (self.config.hidden,))
        return self._emit(R.nn.rms_norm(x, as_constant(weight), [-1], self.config.epsilon))

    def _split(self, x: Expr, widths: list[int]) -> list[Expr]:
        ends = [int(end) for end in np.cumsum(widths)[:-1]]
        split = self._emit(R.split(x, ends, axis=-1))
        return [self._emit(relax.TupleGetItem(split, index)) for index in range(len(widths))]

    def _emit(self, value: Expr) -> Expr:
        return self._builder.emit(value)


def _one() -> Expr:
    return relax.const(1.0, "float32")
