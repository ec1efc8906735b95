"""Layer kinds of models whose layers differ.

A kind is "full_attention", "sliding_attention", "chunked_attention", "recurrent", "both" (attention and a recurrent
mixer in parallel), or "mlp" and "moe" for layers with nothing else.
"""

from __future__ import annotations

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.llm.settings import Settings

FULL, SLIDING, CHUNKED, RECURRENT, BOTH, MLP, MOE = (
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "recurrent",
    "both",
    "mlp",
    "moe",
)
_NAMES = {
    **{name: name for name in (FULL, SLIDING, CHUNKED, RECURRENT, BOTH, MLP, MOE)},
    "attention": FULL,
    "mamba": RECURRENT,
    "mamba2": RECURRENT,
    "conv": RECURRENT,
    "linear_attention": RECURRENT,
    "hybrid": BOTH,
}
_LETTERS = {"M": RECURRENT, "*": FULL, "-": MLP, "E": MOE}


def listed_kinds(settings: Settings, count: int) -> list[str]:
    """Return the kinds from a list, from the layers with attention, or from the interval between them."""
    stored = settings.each_layer("layer_types", count) or settings.each_layer("layers_block_type", count)
    if stored is not None:
        return [_named(settings, name) for name in stored]
    for key in ("full_attn_idxs", "attn_layer_indices"):
        attending = settings.get(key)
        if isinstance(attending, list):
            return [FULL if index in attending else RECURRENT for index in range(count)]
    if settings.get("full_attention_interval") is not None:
        every = settings.size("full_attention_interval")
        return [RECURRENT if (index + 1) % every else FULL for index in range(count)]
    return [RECURRENT] * count


def kinds_by_fours(count: int) -> list[str]:
    """Layer kinds of OLMo-Hybrid without a list: attention in every fourth layer, or in the last one if there are
    fewer."""
    return [FULL if index % 4 == 3 or index == count - 1 < 3 else RECURRENT for index in range(count)]


def kinds_by_interval(settings: Settings, count: int) -> list[str]:
    """Layer kinds of Jamba without a list: attention at a fixed interval and offset."""
    if settings.get("layer_types") is not None:
        return listed_kinds(settings, count)
    period, offset = settings.size("attn_layer_period", 8), settings.number("attn_layer_offset", 4)
    return [FULL if index % period == offset else RECURRENT for index in range(count)]


def kinds_of_nemotron(settings: Settings, count: int) -> list[str]:
    """Return layer kinds from the config's list, or from a pattern with one letter per layer."""
    pattern = settings.get("hybrid_override_pattern")
    if pattern is None:
        return listed_kinds(settings, count)
    if not isinstance(pattern, str) or len(pattern) != count or not set(pattern) <= set(_LETTERS):
        raise InvalidModelError(f"{settings.path}: 'hybrid_override_pattern' is not a letter for each layer")
    return [_LETTERS[letter] for letter in pattern]


def _named(settings: Settings, name: object) -> str:
    if not isinstance(name, str) or name not in _NAMES:
        raise OptionError(f"{settings.path}: layers of type {str(name)[:80]!r} are not supported")
    return _NAMES[name]
