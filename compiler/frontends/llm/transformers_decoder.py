"""Decoders that are not built here: transformers' own code, captured by torch.export with a static cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, MissingDependencyError, OptionError
from compiler.frontends.imported_model import ImportedModel, IndexRequirement, PositionSpec
from compiler.frontends.llm.families import FAMILIES
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.support.optional import optional_module

TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
MOST_CONTEXT = 4096  # the cache of such a module has a fixed size
_TYPES = {None: "float32", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_ROW_LAYERS = ("StaticLayer", "StaticSlidingWindowLayer")


@dataclass(frozen=True)
class CapturedDecoder:
    """A module with the inputs, outputs and states of one that is built here, and what its config says of it."""

    model: ImportedModel
    architecture: str
    context: int
    vocabulary: int


def is_available() -> bool:
    """Whether torch and transformers are installed."""
    try:
        packages()
    except MissingDependencyError:
        return False
    return True


def capture_decoder(folder: Path, options: LanguageModelOptions) -> CapturedDecoder:
    """Capture the causal language model of a folder.

    Raises:
        OptionError: an option does not apply, or the model's states are not keys and values.
        InvalidModelError: transformers cannot load the folder, or torch.export cannot capture it.
        UnsupportedModelError: an operator has no conversion.
        MissingDependencyError: torch or transformers is not installed.
    """
    torch, transformers = packages()
    dtype = check_options(folder, options)
    model = load_model(folder, getattr(torch, dtype), transformers.AutoModelForCausalLM)
    config = model.config.get_text_config()
    vocabulary, context = int(config.vocab_size), context_of(config)
    module = _with_cache(model, context)
    imported = _imported(module, context, torch)
    states = tuple(replace(state, axis=2) for state in imported.states)
    rows = next(each.shape[1] for each in imported.inputs if each.name == TOKENS)
    tokens = IndexRequirement(TOKENS, str(vocabulary), {}, "the vocabulary", "0")
    imported = replace(
        imported, states=states, position=PositionSpec(POSITION, rows), indices=(*imported.indices, tokens)
    )
    return CapturedDecoder(imported, str(model.config.model_type), context, vocabulary)


def packages() -> tuple[Any, Any]:
    """torch and transformers. Raises MissingDependencyError."""
    purpose = "captures language models that are not built here"
    return optional_module("torch", "torch", purpose), optional_module("transformers", "transformers", purpose)


def check_options(folder: Path, options: LanguageModelOptions) -> str:
    """Name of torch's type of the weights. Raises OptionError for options that do not apply to captured models."""
    if options.precision not in _TYPES:
        raise OptionError(
            f"{folder}: precision {options.precision!r} is not supported for models captured from transformers",
            "take float32, float16 or bfloat16, or quantize the module with tensorwright quantize",
        )
    if options.sequences or options.all_logits or options.cache is not None:
        raise OptionError(
            f"{folder}: sequences, all_logits and cache do not apply to models captured from transformers"
        )
    return _TYPES[options.precision]


def load_model(folder: Path, dtype: Any, loader: Any) -> Any:
    """The model by one of transformers' automatic classes, from safetensors; code of a folder is never run.

    Raises InvalidModelError.
    """
    try:
        model = loader.from_pretrained(folder, dtype=dtype, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as error:
        raise InvalidModelError(f"{folder}: transformers cannot load it: {str(error)[:300]}") from error
    return model.eval()


def context_of(config: Any, setting: str = "max_position_embeddings") -> int:
    """How many tokens a model has positions for, at most `MOST_CONTEXT`."""
    return min(int(getattr(config, setting, None) or MOST_CONTEXT), MOST_CONTEXT)


def fixed_cache(layers: Sequence[Any], capacity: int) -> Any:
    """A cache of transformers with the keys and values of such layers, of fixed capacity."""
    from transformers import cache_utils

    cache = cache_utils.Cache(layers=[cache_utils.StaticLayer(capacity) for _ in layers])
    for layer, like in zip(cache.layers, layers, strict=True):
        layer.lazy_initialization(like.keys, like.values)
    return cache


def _with_cache(model: Any, capacity: int) -> Any:
    """A module from tokens and a position to logits, whose buffers are the cache.

    Raises OptionError for a model that keeps something else than keys and values.
    """
    import torch

    cache = _static_cache(model, capacity)
    cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    class Decoder(torch.nn.Module):
        """Writes to its buffers as it runs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            register_caches(self, cache.layers)

        def forward(self, tokens: Any, position: Any) -> dict[str, Any]:
            read_caches(self, cache.layers, position)
            call: Mapping[str, Any] = {cache_name: cache}
            found = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1, **call)
            return {LOGITS: found.logits.to(torch.float32)}

    return Decoder().eval()


def register_caches(module: Any, layers: Sequence[Any]) -> None:
    """Make the keys and values of a static cache's layers buffers of a module."""
    for index, layer in enumerate(layers):
        module.register_buffer(f"key_{index}", layer.keys)
        module.register_buffer(f"value_{index}", layer.values)


def read_caches(module: Any, layers: Sequence[Any], position: Any) -> None:
    """Let the layers of a static cache read and write a module's buffers, `position` tokens of which are filled."""
    for index, layer in enumerate(layers):
        layer.keys, layer.values = getattr(module, f"key_{index}"), getattr(module, f"value_{index}")
        layer.cumulative_length = position.clone()


def _static_cache(model: Any, capacity: int) -> Any:
    import torch
    from transformers import cache_utils

    config = model.config.get_text_config()
    cache = cache_utils.StaticCache(max_cache_len=capacity, config=config)
    for index, layer in enumerate(cache.layers):
        kind = type(layer).__name__
        if kind not in _ROW_LAYERS:
            raise OptionError(
                f"models of type {model.config.model_type!r} are not supported: layer {index} keeps a {kind}, which is "
                "not keys and values of each token",
                f"built without PyTorch: {', '.join(sorted(FAMILIES))}",
            )
        # The mask hides what a window does not see, so that all layers can keep everything.
        cache.layers[index] = cache_utils.StaticLayer(capacity)
    with torch.no_grad():  # the first run sizes the layers
        name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True, **{name: cache})
    for layer in cache.layers:
        layer.keys, layer.values = torch.zeros_like(layer.keys), torch.zeros_like(layer.values)
    return cache


def _imported(module: Any, capacity: int, torch: Any) -> ImportedModel:
    from compiler.frontends.torch import import_torch

    length = torch.export.Dim("n", min=1, max=capacity)
    example = {TOKENS: torch.ones((1, 7), dtype=torch.int64), POSITION: torch.tensor(3)}
    dynamic = {TOKENS: {1: length}, POSITION: None}
    with torch.no_grad():
        return import_torch(module, example_inputs=example, dynamic_shapes=dynamic)
