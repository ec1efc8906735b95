"""A folder of the transformers library: config.json as a decoder's configuration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import MOST_LAYERS, Activation, DecoderConfig, LayerConfig
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.rope import Rope, RopeSettings, make_rope
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.weights import Checkpoint

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_MAX_SIZE = 1 << 31


class Settings:
    """A config.json whose values are checked as they are read; `defaults` stand in for what it leaves out."""

    def __init__(self, values: Mapping[str, Any], path: Path, defaults: Mapping[str, Any]) -> None:
        self._values, self.path, self._defaults = values, path, defaults

    def get(self, key: str) -> Any:
        """A value; None where there is none."""
        value = self._values.get(key)
        return self._defaults.get(key) if value is None else value

    def flag(self, key: str) -> bool:
        """A truth value, false where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(key, value, "a number")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self._wrong(key, value, "a number above 0")
        return value

    def optional(self, key: str) -> float | None:
        """A finite number, or None."""
        return None if self.get(key) is None else self.number(key)

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MAX_SIZE:
            raise self._wrong(key, value, "a size")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """An object; empty where there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return dict(value or {})

    def each_layer(self, key: str, count: int) -> list[Any] | None:
        """A list with an entry for each layer, or None."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self._wrong(key, value, f"a list of {count} layers")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> InvalidModelError:
        what = "is missing" if value is None else f"is {str(value)[:80]!r}, not {wanted}"
        return InvalidModelError(f"{self.path}: {key!r} {what}")


@dataclass(frozen=True)
class Family:
    """What the type of a model says and its config.json may not.

    Attributes:
        norms: where a block has norms: as of `hugging_face_names`.
        changes: adapts the configuration.
        defaults: values of config.json that it may leave out.
        storage: how its weights are stored.
        scales_full_only: `rope_scaling` is for layers that see everything, and not for those with a window.
    """

    norms: str = "pre"
    changes: Callable[[DecoderConfig, Settings], DecoderConfig] = lambda config, settings: config
    defaults: Mapping[str, Any] = field(default_factory=dict)
    storage: Storage = field(default_factory=Storage)
    scales_full_only: bool = False


def read_hugging_face(folder: Path) -> tuple[DecoderConfig, Names, Storage, Checkpoint]:
    """The configuration, names and weights of a folder.

    Raises:
        StorageError: a file is missing.
        InvalidModelError: a file is damaged, or config.json is not complete.
        OptionError: the type of the model, or a setting of it, is not supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise OptionError(
            f"{path}: models of type {kind!r} are not supported",
            f"supported: {', '.join(sorted(FAMILIES))}; others can be exported by torch.export or to ONNX",
        )
    quantized = values.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise OptionError(
            f"{path}: the weights are quantized ({str(method)[:80]})",
            "give the model in float16, bfloat16 or float32, or a GGUF file",
        )
    settings = Settings(values, path, family.defaults)
    config = family.changes(_config(settings, str(kind), family), settings)
    tied = True if settings.flag("tie_word_embeddings") else None
    checkpoint = Checkpoint(SafetensorsFolder(folder), str(folder))
    # Computed from the configuration; old files hold it.
    checkpoint.ignore([f"model.layers.{index}.self_attn.rotary_emb.inv_freq" for index in range(len(config.layers))])
    return config, hugging_face_names(family.norms), replace(family.storage, tied=tied), checkpoint


def _config(settings: Settings, kind: str, family: Family) -> DecoderConfig:
    hidden, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    head_size = settings.size("head_dim", hidden // heads)
    activation = settings.get("hidden_activation") or settings.get("hidden_act") or "silu"
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise OptionError(f"{settings.path}: the activation {str(activation)[:80]!r} is not supported")
    key_heads = settings.size("num_key_value_heads", heads)
    if heads % key_heads:
        raise InvalidModelError(f"{settings.path}: {heads} heads do not share {key_heads} heads of keys")
    return DecoderConfig(
        architecture=kind,
        hidden=hidden,
        intermediate=settings.size("intermediate_size"),
        vocabulary=settings.size("vocab_size"),
        heads=heads,
        key_heads=key_heads,
        head_size=head_size,
        context=settings.size("max_position_embeddings"),
        layers=_layers(settings, head_size, family),
        score_scale=1 / math.sqrt(head_size),
        epsilon=settings.number("rms_norm_eps", 1e-6),
        activation=_ACTIVATIONS[activation],
    )


def _layers(settings: Settings, head_size: int, family: Family) -> tuple[LayerConfig, ...]:
    """The window and the rotary embedding of each layer."""
    count = settings.size("num_hidden_layers")
    if count > MOST_LAYERS:
        raise InvalidModelError(f"{settings.path}: {count} layers, and at most {MOST_LAYERS} are supported")
    kinds = settings.each_layer("layer_types", count)
    window = settings.size("sliding_window") if settings.get("sliding_window") is not None else None
    ropes: dict[str, Rope] = {}
    layers = []
    for index in range(count):
        kind = _attention_kind(settings, index, kinds, window)
        if kind not in ropes:
            ropes[kind] = _rope(settings, head_size, kind, scaled=kind == _FULL or not family.scales_full_only)
        if kind == _SLIDING and window is None:
            raise InvalidModelError(f"{settings.path}: layer {index} has a window, and 'sliding_window' is missing")
        layers.append(LayerConfig(ropes[kind], window if kind == _SLIDING else None))
    return tuple(layers)


_FULL, _SLIDING = "full_attention", "sliding_attention"


def _attention_kind(settings: Settings, index: int, kinds: list[Any] | None, window: int | None) -> str:
    """Full or sliding, by the list of layers, by a pattern, or by the first layer that slides."""
    if kinds is not None:
        if kinds[index] not in (_FULL, _SLIDING):
            raise OptionError(f"{settings.path}: layers of type {kinds[index]!r} are not supported")
        return str(kinds[index])
    if window is None or settings.get("use_sliding_window") is False:
        return _FULL
    pattern = settings.get("sliding_window_pattern")
    if pattern is not None:
        return _SLIDING if (index + 1) % settings.size("sliding_window_pattern") else _FULL
    first = settings.optional("max_window_layers")
    return _SLIDING if first is None or index >= first else _FULL


def _rope(settings: Settings, head_size: int, kind: str, *, scaled: bool) -> Rope:
    """Of layers of one kind: `rope_parameters` for all, or a table of one for each kind; or the older keys."""
    parameters = settings.table("rope_parameters")
    if any(isinstance(each, dict) for each in parameters.values()):
        scaling = dict(parameters.get(kind) or {})
    else:
        scaling = (parameters or settings.table("rope_scaling")) if scaled else {}
        if not scaled and settings.get("rope_local_base_freq") is not None:
            scaling = {"rope_theta": settings.number("rope_local_base_freq")}
    base = scaling.get("rope_theta")
    base = settings.number("rope_theta", 10000.0) if base is None else base
    part = scaling.get("partial_rotary_factor")
    part = settings.number("partial_rotary_factor", 1.0) if part is None else part
    if not isinstance(base, int | float) or not isinstance(part, int | float):
        raise InvalidModelError(f"{settings.path}: the rotary embedding's base is {base!r}, its part {part!r}")
    original = settings.get("original_max_position_embeddings")
    if original is not None:
        scaling.setdefault("original_max_position_embeddings", original)
    context = settings.size("max_position_embeddings")
    return make_rope(RopeSettings(int(head_size * part), float(base), context, scaling))


def _without_rope(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    """SmolLM3: some layers have no rotary positions."""
    count = len(config.layers)
    every = settings.size("no_rope_layer_interval", 4)
    with_rope = settings.each_layer("no_rope_layers", count) or [(index + 1) % every for index in range(count)]
    layers = (
        layer if rotates else replace(layer, rope=None) for layer, rotates in zip(config.layers, with_rope, strict=True)
    )
    return replace(config, layers=tuple(layers))


def _granite(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(
        config,
        embedding_scale=settings.number("embedding_multiplier", 1.0),
        residual_scale=settings.number("residual_multiplier", 1.0),
        score_scale=settings.number("attention_multiplier", 1.0),
        logit_scale=1 / settings.positive("logits_scaling", 1.0),
    )


def _gemma(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    if settings.flag("use_bidirectional_attention"):
        raise OptionError(f"{settings.path}: bidirectional attention is not supported")
    scale = None if settings.get("query_pre_attn_scalar") is None else settings.positive("query_pre_attn_scalar")
    return replace(
        config,
        embedding_scale=math.sqrt(config.hidden),
        score_scale=config.score_scale if scale is None else scale**-0.5,
        score_cap=settings.optional("attn_logit_softcapping"),
        logit_cap=settings.optional("final_logit_softcapping"),
    )


def _olmo(config: DecoderConfig, settings: Settings) -> DecoderConfig:
    return replace(config, norm="layer", epsilon=1e-5, clip=settings.optional("clip_qkv"))


_GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_GEMMA_STORAGE = Storage(norm_offset=1.0)

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "ministral": Family(),
    "qwen2": Family(defaults={"use_sliding_window": False, "max_window_layers": 28}),
    "qwen3": Family(defaults={"use_sliding_window": False, "max_window_layers": 28, "head_dim": 128}),
    "smollm3": Family(
        changes=_without_rope, defaults={"use_sliding_window": False, "rope_theta": 2e6, "tie_word_embeddings": True}
    ),
    "phi3": Family(defaults={"rms_norm_eps": 1e-5}),
    "granite": Family(changes=_granite),
    "gemma": Family(
        changes=_gemma, defaults={**_GEMMA, "hidden_activation": "gelu_pytorch_tanh"}, storage=_GEMMA_STORAGE
    ),
    "gemma2": Family(
        norms="sandwich",
        changes=_gemma,
        defaults={**_GEMMA, "sliding_window": 4096, "sliding_window_pattern": 2, "query_pre_attn_scalar": 256},
        storage=_GEMMA_STORAGE,
    ),
    "gemma3_text": Family(
        norms="sandwich",
        scales_full_only=True,
        changes=_gemma,
        defaults={
            **_GEMMA,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "query_pre_attn_scalar": 256,
            "rope_theta": 1e6,
            "rope_local_base_freq": 10000.0,
        },
        storage=_GEMMA_STORAGE,
    ),
    "olmo": Family(changes=_olmo, storage=Storage(bare_norms=True)),
    "olmo2": Family(norms="post", defaults={"rms_norm_eps": 1e-5}),
    "olmo3": Family(
        norms="post",
        scales_full_only=True,
        defaults={"rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4},
    ),
}
