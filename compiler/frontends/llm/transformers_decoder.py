"""Decoders of other model types: transformers' own code, captured by torch.export with a static cache."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import IndexRequirement
from compiler.errors import (
    InvalidModelError,
    MissingDependencyError,
    OptionError,
    Refusal,
    TensorwrightError,
    UnsupportedModelError,
)
from compiler.frontends.imported_model import ImportedModel, PositionSpec
from compiler.frontends.llm.captured_cache import with_cache_type
from compiler.frontends.llm.captured_products import with_precision
from compiler.frontends.llm.config import MAX_LAYERS
from compiler.frontends.llm.families import FAMILIES
from compiler.frontends.llm.options import PRECISIONS, LanguageModelOptions
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder, read_json
from compiler.frontends.llm.settings import MAX_SIZE
from compiler.support.optional import optional_module

TOKENS, POSITION, LOGITS = "tokens", "position", "logits"
MAX_CONTEXT = 4096  # the cache of such a module has a fixed size
_COUNTS = ("layers", "heads", "_size", "_dim", "experts", "d_model")
_SMALL = 1 << 22  # parameters that a model may have in addition to the stored ones
_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    RuntimeError,  # RecursionError among them
    TypeError,
    AttributeError,
    ImportError,
    ArithmeticError,
    IndexError,
    MemoryError,
    AssertionError,
)
_CHECKED_TOKENS = 7, 20  # in the first run, and in both runs
_CHECK_TOLERANCE = 1e-3  # relative to the largest logit
_INDEXED_LAYER = "StaticIndexedLayer"  # also keeps keys of an indexer (DeepSeek Sparse Attention)
_ROW_LAYERS = ("StaticLayer", "StaticSlidingWindowLayer", _INDEXED_LAYER)
_CACHES = ("key_", "value_", "indexer_")  # prefixes of buffers
_SHARED_LAYER = "DummyLayer"  # for layers that read the keys and values of another one (Gemma 3n and 4)
_MASK, _MASKING = "attention_mask", "in prepare_padding_mask"  # an input, and the source of errors about its size
_SLICING = "_maybe_slice_kv_shared_inputs"  # queries the number of tokens, which is symbolic


@dataclass(frozen=True)
class CapturedDecoder:
    """A module with the same interface as the decoders built here, and properties from its config."""

    model: ImportedModel
    architecture: str
    context: int
    vocabulary: int


def is_available() -> bool:
    """True if torch and transformers are installed."""
    try:
        packages()
    except MissingDependencyError:
        return False
    return True


def capture_decoder(folder: Path, options: LanguageModelOptions) -> CapturedDecoder:
    """Capture the causal language model in a folder.

    Raises:
        OptionError: an option does not apply, or the model's states are not keys and values.
        InvalidModelError: transformers cannot load the folder, or torch.export cannot capture it.
        UnsupportedModelError: an operator has no conversion.
        MissingDependencyError: torch or transformers is not installed.
    """
    _, transformers = packages()
    options = checked_options(folder, options)
    model = load_model(folder, transformers.AutoModelForCausalLM)
    with model_code(folder, model):
        config = model.config.get_text_config()
        vocabulary, context = int(config.vocab_size), context_of(config)
        imported = _captured(folder, model, context, vocabulary, all_logits=options.all_logits)
    imported = replace(imported, mod=with_precision(imported.mod, options, vocabulary))
    imported = with_cache_type(imported, options.cache_dtype(narrow=False))
    ranks = {each.name: len(each.shape) for each in imported.inputs}
    # The row axis precedes the width.
    states = tuple(replace(state, axis=ranks[state.input] - 2) for state in imported.states)
    rows = next(each.shape[1] for each in imported.inputs if each.name == TOKENS)
    tokens = IndexRequirement(input=TOKENS, size=str(vocabulary), where="the vocabulary", least="0")
    imported = replace(
        imported, states=states, position=PositionSpec(POSITION, rows), indices=(*imported.indices, tokens)
    )
    return CapturedDecoder(imported, str(model.config.model_type), context, vocabulary)


def _captured(folder: Path, model: Any, context: int, vocabulary: int, *, all_logits: bool) -> ImportedModel:
    """Import the model with a static cache; the second attempt passes a mask of all rows, since some code creates one
    from the data-dependent number of filled rows (BioGPT, BigBird)."""
    import torch

    def imported(*, masked: bool) -> ImportedModel:
        module = _with_cache(model, context, all_logits=all_logits, masked=masked)
        _check_cache(folder, module, vocabulary)
        return _imported(module, context, torch)

    try:
        return imported(masked=False)
    except InvalidModelError as error:
        if _MASKING not in error.message or _MASK not in inspect.signature(model.forward).parameters:
            raise
    return imported(masked=True)


@contextmanager
def model_code(folder: Path, model: Any) -> Iterator[None]:
    """Context for transformers code that assumes a cache of keys and values, which not all models have.

    Raises UnsupportedModelError for anything raised before the model is imported.
    """
    from compiler.frontends.torch.capture_errors import line_of_the_model

    try:
        yield
    except TensorwrightError:
        raise
    except Exception as error:
        if any(frame.name == "import_torch" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # an importer bug
        reason = f"it does not run with a static cache of keys and values ({type(error).__name__}: {str(error)[:300]})"
        location = line_of_the_model(error.__traceback__)
        raise UnsupportedModelError(
            [Refusal("language model", f"{folder.name} of type {model.config.model_type!r}", f"{reason}{location}")],
            f"built without PyTorch: {', '.join(sorted(FAMILIES))}",
        ) from error


def packages() -> tuple[Any, Any]:
    """Return torch and transformers. Raises MissingDependencyError."""
    purpose = "captures language models that are not built here"
    return optional_module("torch", "torch", purpose), optional_module("transformers", "transformers", purpose)


def checked_options(folder: Path, options: LanguageModelOptions) -> LanguageModelOptions:
    """Return the options, with a default for the precision of stored weights.

    Raises OptionError for options that do not apply to captured models.
    """
    if options.sequences or options.captures:
        raise OptionError(
            f"{folder}: sequences and calibration do not apply to models captured from transformers",
            "leave them out",
        )
    values = read_json(folder / "config.json")
    stored = values.get("dtype") or values.get("torch_dtype")
    return options if options.precision or stored not in PRECISIONS else replace(options, precision=stored)


def load_model(folder: Path, loader: Any, *, encoder_only: bool = False) -> Any:
    """Load the model in float32 by one of transformers' automatic classes; never runs a folder's code, nor programs
    in its files of weights.

    Args:
        encoder_only: load only the first layer of the text part, to save memory.

    Raises InvalidModelError.
    """
    import torch

    weights = SafetensorsFolder(folder)
    stored = sum(math.prod(shape) for shape in weights.shapes())
    try:
        _check_size(folder, loader, stored)
        smaller = {"config": _with_one_layer(folder)} if encoder_only else {}
        model, info = loader.from_pretrained(
            folder,
            **smaller,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=weights.is_safetensors,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise InvalidModelError(f"{folder}: transformers cannot load it: {str(error)[:300]}") from error
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would continue with random weights
        raise InvalidModelError(f"{folder} lacks the tensor {missing[0]!r}", "the checkpoint is not complete")
    return model.eval()


def _with_one_layer(folder: Path) -> Any:
    """Return the config with the first layer of the text part alone."""
    config = _config(folder)
    text = config.get_text_config()
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    return config


def _config(folder: Path) -> Any:
    import transformers

    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _check_size(folder: Path, loader: Any, stored: int) -> None:
    """Raise InvalidModelError, before allocating memory, if a config describes a model much larger than the `stored`
    numbers, or has impossible settings."""
    import torch

    values = read_json(folder / "config.json")
    for table in (values, *(each for each in values.values() if isinstance(each, dict))):
        for key, value in table.items():
            is_count = key.endswith(_COUNTS) and isinstance(value, int) and not isinstance(value, bool)
            # -1 means none
            if is_count and not -1 <= value <= (MAX_LAYERS if key.endswith("layers") else MAX_SIZE):
                raise InvalidModelError(f"{folder / 'config.json'}: {key!r} is {str(value)[:80]}, not a size")
    config = _config(folder)
    with torch.device("meta"):
        described = sum(each.numel() for each in loader.from_config(config, trust_remote_code=False).parameters())
    if described > 2 * stored + _SMALL:
        raise InvalidModelError(
            f"{folder}: config.json describes a model of {described:,} parameters, but the files contain {stored:,}",
            "its config and its weights do not belong together",
        )


def context_of(config: Any, setting: str = "max_position_embeddings") -> int:
    """Return the maximum context length of a model in tokens, at most `MAX_CONTEXT`."""
    return min(int(getattr(config, setting, None) or MAX_CONTEXT), MAX_CONTEXT)


def fixed_cache(layers: Sequence[Any], capacity: int) -> Any:
    """Return a fixed-capacity transformers cache with the keys and values of such layers."""
    from transformers import cache_utils

    cache = cache_utils.Cache(layers=[cache_utils.StaticLayer(capacity) for _ in layers])
    for layer, like in zip(cache.layers, layers, strict=True):
        layer.lazy_initialization(like.keys, like.values)
    return cache


def _with_cache(model: Any, capacity: int, *, all_logits: bool, masked: bool) -> Any:
    """Return a module that maps tokens and a position to logits, with the cache as buffers; `masked`: pass the model a
    mask that hides no row.

    Raises OptionError for a model with states other than keys and values.
    """
    import torch

    keep_all_tokens(model)
    cache = _static_cache(model, capacity)
    cached_layers = [layer for layer in cache.layers if type(layer).__name__ != _SHARED_LAYER]
    cache_name = cache_argument(model)

    class Decoder(torch.nn.Module):
        """Writes to its buffers when run."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            register_caches(self, cached_layers)

        def forward(self, tokens: Any, position: Any) -> dict[str, Any]:
            read_caches(self, cached_layers, position)
            call: dict[str, Any] = {cache_name: cache}
            if masked:
                call[_MASK] = torch.ones((1, capacity), dtype=torch.int64)
            found = self.model(input_ids=tokens, use_cache=True, logits_to_keep=0 if all_logits else 1, **call)
            return {LOGITS: found.logits.to(torch.float32)}

    return Decoder().eval()


def _check_cache(folder: Path, module: Any, vocabulary: int) -> None:
    """Run with and without the static cache, whose capacity some code mistakes for the number of tokens (GPT-Neo's
    masks).

    Raises UnsupportedModelError if the logits differ.
    """
    import torch

    first, count = _CHECKED_TOKENS
    tokens = torch.arange(1, count + 1)[None] % vocabulary
    with torch.no_grad():
        expected = module.model(input_ids=tokens, use_cache=False).logits[0, -1].float()
        module(tokens[:, :first], torch.tensor(0))
        actual = module(tokens[:, first:], torch.tensor(first))[LOGITS][0, -1]
        for name, buffer in module.named_buffers(recurse=False):
            if name.startswith(_CACHES):
                buffer.zero_()
    error = float((actual - expected).abs().max() / expected.abs().max())
    if not error <= _CHECK_TOLERANCE:  # NaN included
        raise UnsupportedModelError(
            [
                Refusal(
                    "language model",
                    f"{folder.name} of type {module.model.config.model_type!r}",
                    f"transformers computes different logits with a static cache than without one (by {error:.1e})",
                )
            ],
            f"built without PyTorch: {', '.join(sorted(FAMILIES))}",
        )


def keep_all_tokens(model: Any) -> None:
    """Let layers that share keys and values compute all tokens, as others do."""
    for part in model.modules():
        if hasattr(part, _SLICING):
            setattr(part, _SLICING, _unsliced)


def _unsliced(*inputs: Any, **_: Any) -> tuple[Any, ...]:
    """Return hidden states, layer inputs, rotations and masks of all tokens, unchanged."""
    return inputs[:4]


def cache_argument(module: Any) -> str:
    """Return the name of the cache argument, which depends on the version of transformers."""
    return "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"


def register_caches(module: Any, layers: Sequence[Any]) -> None:
    """Register the keys and values of a static cache's layers as buffers of a module."""
    for index, layer in enumerate(layers):
        module.register_buffer(f"key_{index}", layer.keys)
        module.register_buffer(f"value_{index}", layer.values)
        if getattr(layer, "indexer_keys", None) is not None:
            module.register_buffer(f"indexer_{index}", layer.indexer_keys)


def read_caches(module: Any, layers: Sequence[Any], position: Any) -> None:
    """Let a static cache's layers read and write a module's buffers, of which `position` tokens are filled."""
    for index, layer in enumerate(layers):
        layer.keys, layer.values = getattr(module, f"key_{index}"), getattr(module, f"value_{index}")
        layer.cumulative_length = position.clone()
        if hasattr(module, f"indexer_{index}"):
            layer.indexer_keys, layer.indexer_cumulative_length = getattr(module, f"indexer_{index}"), position.clone()


def _static_cache(model: Any, capacity: int) -> Any:
    import torch
    from transformers import cache_utils

    config = model.config.get_text_config()
    cache = cache_utils.StaticCache(max_cache_len=capacity, config=config)
    for index, layer in enumerate(cache.layers):
        kind = type(layer).__name__
        if kind == _SHARED_LAYER:
            continue
        if kind not in _ROW_LAYERS:
            raise OptionError(
                f"models of type {model.config.model_type!r} are not supported: layer {index} keeps a {kind}, which is "
                "not keys and values of each token",
                f"built without PyTorch: {', '.join(sorted(FAMILIES))}",
            )
        if kind != _INDEXED_LAYER:  # the mask hides rows outside a window, so that all layers can keep everything
            cache.layers[index] = cache_utils.StaticLayer(capacity)
    with torch.no_grad():  # the first run sizes the layers
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True, **{cache_argument(model): cache})
    for layer in cache.layers:
        for name in ("keys", "values", "indexer_keys"):
            if getattr(layer, name, None) is not None:
                setattr(layer, name, torch.zeros_like(getattr(layer, name)))
    return cache


def _imported(module: Any, capacity: int, torch: Any) -> ImportedModel:
    from compiler.frontends.torch import import_torch

    length = torch.export.Dim("n", min=1, max=capacity)
    example = {TOKENS: torch.ones((1, 7), dtype=torch.int64), POSITION: torch.tensor(3)}
    dynamic = {TOKENS: {1: length}, POSITION: None}
    with torch.no_grad():
        return import_torch(module, example_inputs=example, dynamic_shapes=dynamic)
