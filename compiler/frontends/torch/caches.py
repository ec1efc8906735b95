"""Caches of the transformers library as inputs: their keys and values become program inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from compiler.errors import InputError, type_text

CACHE_MODULE = "transformers.cache_utils"
# In these layers only keys and values change; others count positions or write in place.
_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


def is_cache(value: object) -> bool:
    """True for a cache of the transformers library, or one of its layers."""
    return any(each.__module__ == CACHE_MODULE for each in type(value).__mro__)


def register_caches(arguments: Iterable[object]) -> None:
    """Let `torch.export` flatten caches among the arguments into the keys and values of each layer in turn.

    Raises InputError for caches that hold more than keys and values.
    """
    from torch.utils import _pytree

    for cache in filter(is_cache, arguments):
        if type(cache) in _pytree.SUPPORTED_NODES:
            continue
        _check(cache)
        _pytree.register_pytree_node(type(cache), _tensors, _cache_of, flatten_with_keys_fn=_tensors_with_keys)


def _check(cache: object) -> None:
    for index, layer in enumerate(getattr(cache, "layers", [])):
        name, keys = type(layer).__name__, getattr(layer, "keys", None)
        where = f"layer {index} of the {type(cache).__name__} among the example inputs"
        if keys is None:
            raise InputError(
                f"{where} is empty", "fill it with its update method: the number of its keys may be dynamic"
            )
        if name not in _LAYERS:
            raise InputError(f"{where} is a {name}", f"layers of caches that are inputs: {', '.join(_LAYERS)}")
        if getattr(layer, "cumulative_length", keys.shape[-2]) != keys.shape[-2]:
            raise InputError(f"{where} has seen more than its window holds", "give fewer keys than the window")
    if not getattr(cache, "layers", []):
        raise InputError(f"{type_text(cache)} without layers among the example inputs", "leave it out")


class _Structure:
    """Structure of a cache without its tensors; equal for caches with the same layers."""

    def __init__(self, cache: Any) -> None:
        self.cache = copy.copy(cache)
        self.cache.layers = [copy.copy(layer) for layer in cache.layers]
        for layer in self.cache.layers:
            layer.keys = layer.values = None
        self._kinds = (type(cache), *map(type, cache.layers))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Structure) and self._kinds == other._kinds

    def __hash__(self) -> int:
        return hash(self._kinds)


def _tensors(cache: Any) -> tuple[list[Any], _Structure]:
    return [each for layer in cache.layers for each in (layer.keys, layer.values)], _Structure(cache)


def _tensors_with_keys(cache: Any) -> tuple[list[tuple[Any, Any]], _Structure]:
    from torch.utils._pytree import MappingKey

    tensors, structure = _tensors(cache)
    names = [f"{index}_{part}" for index in range(len(cache.layers)) for part in ("keys", "values")]
    keys: list[Any] = [MappingKey(name) for name in names]
    return list(zip(keys, tensors, strict=True)), structure


def _cache_of(tensors: Iterable[Any], structure: _Structure) -> Any:
    """Return a new cache around the tensors."""
    states: Sequence[Any] = list(tensors)
    cache = copy.copy(structure.cache)
    cache.layers = [copy.copy(layer) for layer in structure.cache.layers]
    for index, layer in enumerate(cache.layers):
        layer.keys, layer.values = states[2 * index], states[2 * index + 1]
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = layer.keys.shape[-2]
    return cache
