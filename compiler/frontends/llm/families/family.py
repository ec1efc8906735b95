"""Description of a family of decoders: one entry for both transformers folders and GGUF files.

Settings have the names used in transformers; `compiler.frontends.llm.gguf_settings` translates the metadata of GGUF
files to the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.config import (
    MAX_EXPERTS,
    DecoderConfig,
    ExpertsConfig,
    Heads,
    LatentConfig,
    NormKind,
)
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.mixers import Recurrent
from compiler.frontends.llm.names import Names, hugging_face_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.settings import Settings

Changes = Callable[[DecoderConfig, Settings], DecoderConfig]
Positions = Literal["rotary", "learned", "alibi", "none"]
# The weights of the chosen experts sum to 1, or do not, which llama.cpp assumes for most files that state neither.
NORMALIZED, NOT_NORMALIZED = {"norm_topk_prob": True}, {"norm_topk_prob": False}


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """A GGUF architecture that holds a family.

    Attributes:
        name: the architecture's name.
        norms: see `gguf_names`.
        norm: the tensor of the final norm.
        interleaved: rows of queries and keys are ordered for rotary embeddings of adjacent pairs.
        values: settings that files lack, or that llama.cpp overrides.
        keys: the architecture's metadata -> setting, in addition to the common ones.
        read: returns settings that depend on several metadata or on tensors.
        roles: role -> other name; those in `second` if the first layer has tensors with all its names.
        second: see `roles`.
    """

    name: str
    norms: str = "pre"
    norm: str = "output_norm"
    interleaved: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[GgufFile, Mapping[str, Any]], Mapping[str, Any]] = lambda file, values: {}
    roles: Mapping[str, str] = field(default_factory=dict)
    second: Mapping[str, str] = field(default_factory=dict)


def mixture(settings: Settings, layer: int) -> ExpertsConfig | None:
    """Return the mixture of a layer; None for an MLP, as in dense models, first layers and some layers of Qwen's."""
    key = "num_experts" if settings.get("num_experts") is not None else "num_local_experts"
    dense = settings.get("mlp_only_layers") or []
    every = settings.size("decoder_sparse_step", 1)
    if settings.get(key) is None or not isinstance(dense, list) or layer in dense or (layer + 1) % every:
        return None
    listed = settings.get("mlp_layer_types")
    if isinstance(listed, list) and layer < len(listed):
        if listed[layer] == "dense":
            return None
    elif layer < settings.number("first_k_dense_replace", 0):
        return None
    count = settings.size(key, most=MAX_EXPERTS)
    chosen = settings.size("num_experts_per_tok")
    if chosen > count:
        raise InvalidModelError(f"{settings.path}: {chosen} experts per token, but only {count} in all")
    intermediate = settings.size("moe_intermediate_size", settings.get("intermediate_size"))
    sigmoid, biased = settings.get("scoring_func") == "sigmoid", settings.get("use_expert_bias")
    groups, groups_chosen = _groups(settings, count)
    return ExpertsConfig(
        count=count,
        chosen=chosen,
        intermediate=intermediate,
        normalized=settings.flag("norm_topk_prob"),
        shared=(shared := _shared_width(settings, intermediate)),
        shared_gate=bool(shared) and settings.flag("shared_gate"),
        sigmoid=sigmoid,
        biased=sigmoid if biased is None else biased is True,
        scale=settings.number("routed_scaling_factor", 1.0),
        sum_epsilon=settings.number("topk_sum_epsilon", 0.0),
        groups=groups,
        groups_chosen=groups_chosen,
    )


def _groups(settings: Settings, experts: int) -> tuple[int, int]:
    """Return the number of expert groups, and of groups to choose from; 1 for no groups."""
    if not settings.get("n_group") or settings.get("topk_method") == "greedy":
        return 1, 1
    groups = settings.size("n_group", most=experts)
    chosen = settings.size("topk_group", groups, most=groups)
    if experts % groups or (groups > 1 and experts // groups < 2):
        raise InvalidModelError(f"{settings.path}: {experts} experts are not {groups} groups of several")
    return (groups, chosen) if chosen < groups else (1, 1)


def _shared_width(settings: Settings, intermediate: int) -> int:
    """Return the width of the shared experts' MLP, 0 for none."""
    if settings.get("n_shared_experts"):
        return settings.size("n_shared_experts") * intermediate
    return settings.size("shared_expert_intermediate_size") if settings.get("shared_expert_intermediate_size") else 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """Properties of a model type that its settings may not contain.

    Attributes:
        names: tensor names in folders, or a function that returns them.
        norm, gated: see `DecoderConfig`.
        parallel: attention and MLP read the same x; or the name of this setting.
        positions: rotations, rows of a table ("learned", from row `position_offset` on), ALiBi, or none.
        rope_in_windows_only: if some layers have a window, layers with full attention have no rotary embedding.
        scales_full_only: RoPE scaling applies to layers with full attention, not to those with a window.
        scales_embedding: embeddings are multiplied by the square root of their width.
        rope_if: a setting and the value that enables rotary embeddings; None: always.
        kinds: the kinds of the layers (`layer_kinds`); None: attention in all layers.
        heads: returns a layer's attention heads from its kind and the model's heads; None: the same.
        recurrent: the recurrent mixer of layers that have one.
        latent: the sizes of latent attention; None for separate keys and values.
        one_part: a layer has either a mixer or an MLP.
        experts: returns the mixture of a layer, None for an MLP.
        expansion: MLP width as a multiple of the hidden size, if the settings do not give it.
        defaults: values of settings that a config.json may omit.
        aliases: standard setting -> the family's own name.
        refused: setting -> a description of the unsupported feature, and the supported value.
        changes: adapts the configuration beyond the other fields.
        storage: how weights are stored in folders, or a function that returns it.
        renames: parts of tensor names in folders -> their counterparts in `names`.
        unused: suffixes of tensors that models do not need: masks, frequencies.
        gguf: the family's GGUF architectures.
    """

    names: Names | Callable[[Settings], Names] = field(default_factory=hugging_face_names)
    norm: NormKind = "rms"
    gated: bool = True
    parallel: bool | str = False
    positions: Positions = "rotary"
    position_offset: int = 0
    rope_in_windows_only: bool = False
    scales_full_only: bool = False
    scales_embedding: bool = False
    rope_if: tuple[str, object] | None = None
    kinds: Callable[[Settings, int], list[str]] | None = None
    heads: Callable[[Settings, int, str, Heads], Heads] | None = None
    recurrent: Callable[[Settings], Recurrent] | None = None
    latent: Callable[[Settings], LatentConfig] | None = None
    one_part: bool = False
    experts: Callable[[Settings, int], ExpertsConfig | None] = mixture
    expansion: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, object]] = field(default_factory=dict)
    changes: Changes = lambda config, settings: config
    storage: Storage | Callable[[Settings], Storage] = field(default_factory=Storage)
    renames: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = (".rotary_emb.inv_freq",)
    gguf: tuple[Gguf, ...] = ()


def without(names: Names, role: str) -> Names:
    """Return names without a role, for models whose blocks lack it."""
    return replace(names, roles={key: name for key, name in names.roles.items() if key != role})


def within(prefix: str, roles: Mapping[str, str]) -> dict[str, str]:
    """Prepend a prefix to the names of roles."""
    return {role: prefix + name for role, name in roles.items()}


def needed(*keys: str) -> Callable[[GgufFile, Mapping[str, Any]], Mapping[str, Any]]:
    """Return a check for settings that older files lack. Raises OptionError."""

    def check(file: GgufFile, values: Mapping[str, Any]) -> Mapping[str, Any]:
        architecture = file.value("general.architecture")
        missing = [key for key in keys if file.value(f"{architecture}.{key}") is None]
        if missing:
            raise OptionError(
                f"{file.path}: files of {architecture} without the metadata {', '.join(missing)} are not supported",
                "convert the model again with a newer llama.cpp",
            )
        return {}

    return check
