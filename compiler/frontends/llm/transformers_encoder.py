"""Models of two parts, captured from transformers by `torch.export`: one that reads speech, an image or another text
once, and a decoder that generates with what it found.

What the first part returns is the second's inputs, by name: keys and values of cross attention, or the rows that stand
in place of an image's tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, IndexRequirement, PositionSpec
from compiler.frontends.llm.captured_cache import with_cache_type
from compiler.frontends.llm.captured_products import with_precision
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.safetensors_folder import read_json
from compiler.frontends.llm.transformers_decoder import (
    LOGITS,
    POSITION,
    TOKENS,
    CapturedDecoder,
    checked_options,
    context_of,
    fixed_cache,
    load_model,
    model_code,
    packages,
    read_caches,
    register_caches,
)

_CLASSES = ("ForConditionalGeneration", "ForSpeechSeq2Seq", "MTModel")
_FEATURES, _ROWS = "features", "rows"


@dataclass(frozen=True)
class CapturedPair:
    """Both parts.

    Attributes:
        image_token: stands for each row of an image; None for models with cross attention.
        rows: number of rows of an image.
        frame: tokens before and behind the rows of an image; None for none.
        spectrogram: bands and frames that the encoder of a model like Whisper reads.
    """

    encoder: ImportedModel
    decoder: CapturedDecoder
    image_token: int | None = None
    rows: int = 0
    frame: tuple[int | None, int | None] = (None, None)
    spectrogram: tuple[int, int] | None = None


def has_encoder(folder: Path) -> bool:
    """True if config.json names a model of two parts. Raises StorageError or InvalidModelError where it is damaged."""
    names = read_json(folder / "config.json").get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_CLASSES) for name in names)


def capture_pair(folder: Path, options: LanguageModelOptions) -> CapturedPair:
    """Capture both parts of the model of a folder. Raises as `capture_decoder`."""
    torch, transformers = packages()
    options = checked_options(folder, options)
    if options.all_logits:
        raise OptionError(f"{folder}: all_logits does not apply to models with an encoder", "leave it out")
    crosses = bool(read_json(folder / "config.json").get("is_encoder_decoder"))
    loader = transformers.AutoModelForSeq2SeqLM if crosses else transformers.AutoModelForImageTextToText
    if crosses and read_json(folder / "config.json").get("model_type") in _speech_types(transformers):
        loader = transformers.AutoModelForSpeechSeq2Seq
    model = load_model(folder, loader)
    with torch.no_grad(), model_code(folder, model):
        pair = _with_cross_attention(model) if crosses else _with_images(folder, model)
    # Four bits are too few for what is read once and looked at by every token.
    encoding = replace(options, precision="int8") if options.precision == "int4" else options
    decoder, entries = pair.decoder, pair.decoder.vocabulary
    return replace(
        pair,
        encoder=_in_precision(pair.encoder, encoding, entries),
        decoder=replace(
            decoder,
            model=with_cache_type(_in_precision(decoder.model, options, entries), options.cache_dtype(narrow=False)),
        ),
    )


def _in_precision(model: ImportedModel, options: LanguageModelOptions, entries: int) -> ImportedModel:
    return replace(model, mod=with_precision(model.mod, options, entries))


def _speech_types(transformers: Any) -> Any:
    return transformers.models.auto.modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES


def _with_cross_attention(model: Any) -> CapturedPair:
    import torch

    config, kind = model.config, str(model.config.model_type)
    given, dynamic = _read_once(model)
    cache_name = _cache_argument(model.get_decoder())
    encoder = _cross_encoder(model, cache_name)
    found = encoder(**given)
    context = context_of(config, "max_target_positions")
    own = _own_layers(model, cache_name, len(found) // 2, context)
    rows = {2: torch.export.Dim(_ROWS, min=1)} if dynamic else {}
    decoder = _captured(_cross_decoder(model, own), tuple(found.values()), (tuple(rows for _ in found),), context)
    return CapturedPair(
        _import(encoder, tuple(given.values()), tuple(dynamic.values())),
        _described(decoder, kind, context, config),
        spectrogram=(int(config.num_mel_bins), 2 * int(config.max_source_positions)) if kind == "whisper" else None,
    )


def _cross_encoder(model: Any, cache_name: str) -> Any:
    """The encoder with the projections of the decoder's cross attention: returns the keys and values of its layers."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def crossed(self, given: Any) -> dict[str, Any]:
            hidden = model.get_encoder()(given).last_hidden_state
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            start = torch.zeros((1, 1), dtype=torch.int64)
            named = {cache_name: cache}
            model.get_decoder()(input_ids=start, encoder_hidden_states=hidden, use_cache=True, **named)
            layers = cache.cross_attention_cache.layers
            tensors = [each for layer in layers for each in (layer.keys, layer.values)]
            return {f"cross_{index}": each for index, each in enumerate(tensors)}

    class SpeechEncoder(Encoder):
        def forward(self, input_features: Any) -> dict[str, Any]:
            return self.crossed(input_features)

    class TextEncoder(Encoder):
        def forward(self, input_ids: Any) -> dict[str, Any]:
            return self.crossed(input_ids)

    return TextEncoder() if model.main_input_name == "input_ids" else SpeechEncoder()


def _cross_decoder(model: Any, own: Any) -> Any:
    """The decoder over the cache `own` and the keys and values that the encoder returned; writes to its buffers."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    count, hidden_size = len(own.layers), _width(model)
    cache_name = _cache_argument(model)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            register_caches(self, own.layers)

        def forward(self, tokens: Any, position: Any, *cross: Any) -> dict[str, Any]:
            read_caches(self, own.layers, position)
            others = DynamicCache()
            for index in range(count):
                others.update(cross[2 * index], cross[2 * index + 1], index)
            cache = EncoderDecoderCache(own, others)
            cache.is_updated = dict.fromkeys(range(count), True)
            unread = BaseModelOutput(last_hidden_state=torch.zeros((1, 1, hidden_size), dtype=model.dtype))
            named = {cache_name: cache}
            result = model(decoder_input_ids=tokens, encoder_outputs=unread, use_cache=True, **named)
            return {LOGITS: result.logits[:, -1:].to(torch.float32)}

    return Decoder()


def _read_once(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Example inputs of the encoder, and which of their dimensions are dynamic."""
    import torch

    config, name = model.config, model.main_input_name
    if name == "input_features":
        frames = 2 * int(config.max_source_positions)
        return {name: torch.zeros((1, int(config.num_mel_bins), frames), dtype=model.dtype)}, {}
    if name == "input_ids":
        longest = context_of(config, "max_position_embeddings")
        length = torch.export.Dim("length", min=1, max=longest)
        return {name: torch.ones((1, 7), dtype=torch.int64)}, {name: {1: length}}
    raise OptionError(
        f"models of type {config.model_type!r} are not supported: their encoder reads {name!r}",
        "encoders of text (input_ids) and of log-mel spectrograms (input_features) are",
    )


def _width(model: Any) -> int:
    """Width of the encoder's output for each token."""
    return int(getattr(model.config, "d_model", None) or model.get_input_embeddings().embedding_dim)


def _own_layers(model: Any, cache_name: str, count: int, context: int) -> Any:
    """The cache of the decoder's own tokens, sized by a first run."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    hidden = torch.zeros((1, 1, _width(model)), dtype=model.dtype)
    start = torch.zeros((1, 1), dtype=torch.int64)
    named = {cache_name: cache}
    model.get_decoder()(input_ids=start, encoder_hidden_states=hidden, use_cache=True, **named)
    layers = cache.self_attention_cache.layers
    if len(layers) != count:
        raise OptionError(f"models of type {model.config.model_type!r} are not supported: not all layers keep keys")
    return fixed_cache(layers, context)


def _with_images(folder: Path, model: Any) -> CapturedPair:
    import torch

    config, kind = model.config, str(model.config.model_type)
    if kind not in _IMAGE_MODELS:
        raise OptionError(
            f"{folder}: models of type {kind!r} are not supported", f"of images and text: {', '.join(_IMAGE_MODELS)}"
        )
    found = _IMAGE_MODELS[kind]
    image_token, images = int(getattr(config, found.token)), _images(model, batched=found.batched)
    own: Any = getattr(model.model, found.text)

    class Encoder(torch.nn.Module):
        """Returns a row for each token of the images."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> dict[str, Any]:
            rows = found.rows(model, pixel_values)
            return {_FEATURES: rows.reshape(-1, rows.shape[-1])}

    example = Encoder()(images)[_FEATURES]
    text = config.get_text_config()
    context = context_of(text, "max_position_embeddings")
    cache_name = _cache_argument(own)
    cache = _text_cache(own, cache_name, context)

    class Decoder(torch.nn.Module):
        """Writes to its buffers as it runs."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            for index, layer in enumerate(cache.layers):
                self.register_buffer(f"key_{index}", layer.keys)
                self.register_buffer(f"value_{index}", layer.values)

        def forward(self, tokens: Any, position: Any, first_row: Any, features: Any) -> dict[str, Any]:
            for index, layer in enumerate(cache.layers):
                layer.keys, layer.values = getattr(self, f"key_{index}"), getattr(self, f"value_{index}")
                layer.cumulative_length = position.clone()
            # A prompt says which row its first token of an image takes; tokens that were generated take none.
            stands = (tokens == image_token) & (first_row >= 0)
            places = (torch.cumsum(stands.to(torch.int64), 1) - 1 + first_row).clamp(0, features.shape[0] - 1)
            words = model.get_input_embeddings()(tokens)
            mixed = torch.where(stands[..., None], features[places[0]][None].to(words.dtype), words)
            seen = found.masks(text, stands, position, context) if found.masks else {}
            hidden = own(inputs_embeds=mixed, use_cache=True, **seen, **{cache_name: cache}).last_hidden_state
            return {LOGITS: model.lm_head(hidden[:, -1:]).to(torch.float32)}

    several = {0: torch.export.Dim(_ROWS, min=1)}
    decoder = _captured(Decoder(), (torch.tensor(0), example), (None, several), context)
    count = torch.export.Dim("images", min=1, max=64)
    encoder = _import(Encoder(), (images,), ({images.ndim - 4: count},))
    described = _described(decoder, kind, context, text)
    first, last = (getattr(config, f"{each}_token_index", None) for each in ("boi", "eoi"))
    rows = example.shape[0] // images.shape[images.ndim - 4]
    return CapturedPair(encoder, described, image_token, rows=rows, frame=(first, last))


def _images(model: Any, *, batched: bool) -> Any:
    """Example images, two of them, as the model's processor gives them."""
    import torch

    vision = model.config.vision_config
    channels, size = int(getattr(vision, "num_channels", 3)), int(vision.image_size)
    several = (1, 2) if batched else (2,)
    return torch.randn((*several, channels, size, size), dtype=model.dtype)


def _idefics_rows(model: Any, images: Any) -> Any:
    """Rows of images (1, images, channels, height, width), none of them padded."""
    import torch

    values = images[0]
    side = values.shape[-1] // model.config.vision_config.patch_size
    mask = torch.ones((values.shape[0], side, side), dtype=torch.bool)
    found = model.model.vision_model(pixel_values=values, patch_attention_mask=mask)
    return model.model.connector(found.last_hidden_state)


def _llava_rows(model: Any, images: Any) -> Any:
    """Rows of images (images, channels, height, width)."""
    import torch

    config = model.config
    states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
    layers = config.vision_feature_layer
    chosen = [states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    if config.vision_feature_select_strategy == "default":
        chosen = [each[:, 1:] for each in chosen]
    return model.model.multi_modal_projector(torch.cat(chosen, -1))


def _gemma_rows(model: Any, images: Any) -> Any:
    """Rows of images (images, channels, height, width)."""
    return model.model.multi_modal_projector(model.model.vision_tower(images).last_hidden_state)


def gemma_masks(config: Any, stands: Any, position: Any, capacity: int) -> dict[str, Any]:
    """Positions, and masks (1, 1, n, capacity) in which tokens of an image see one another, in windows too.

    `stands` (1, n) is true for tokens of images, all of whose rows are tokens of this run.
    """
    import torch

    count = stands.shape[1]
    queries, keys = torch.arange(count) + position, torch.arange(capacity)
    begins = stands[0] & ~torch.nn.functional.pad(stands[0], (1, 0))[:count]
    number = torch.where(stands[0], torch.cumsum(begins.to(torch.int64), 0), 0)  # of the image, from 1 on
    own = (keys >= position) & (keys < position + count)
    numbers = torch.where(own, number[(keys - position).clamp(0, count - 1)], 0)
    alike = (numbers[None] == number[:, None]) & (number[:, None] > 0)
    full = (keys[None] <= queries[:, None]) | alike
    sliding = full & (keys[None] > queries[:, None] - config.sliding_window)
    masks = {"full_attention": full[None, None], "sliding_attention": sliding[None, None]}
    return {"attention_mask": masks, "position_ids": queries[None]}


@dataclass(frozen=True, kw_only=True)
class _ImageModel:
    """A model that reads images, whose rows stand in place of tokens.

    Attributes:
        rows: images to rows: (images, rows, width).
        text: the part of the model that is the decoder.
        token: the setting with the token that stands for a row.
        batched: images have an axis of texts before that of images.
        masks: further arguments of the decoder, which depend on the images; None for none.
    """

    rows: Callable[[Any, Any], Any]
    text: str = "text_model"
    token: str = "image_token_id"
    batched: bool = True
    masks: Callable[[Any, Any, Any, int], dict[str, Any]] | None = None


_IMAGE_MODELS = {
    "gemma3": _ImageModel(rows=_gemma_rows, text="language_model", batched=False, masks=gemma_masks),
    "idefics3": _ImageModel(rows=_idefics_rows),
    "llava": _ImageModel(rows=_llava_rows, text="language_model", token="image_token_index", batched=False),
    "smolvlm": _ImageModel(rows=_idefics_rows),
}


def _text_cache(text: Any, cache_name: str, context: int) -> Any:
    import torch
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    text(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True, **{cache_name: cache})
    return fixed_cache(cache.layers, context)


def _captured(module: Any, extra: tuple[Any, ...], sizes: tuple[Any, ...], context: int) -> ImportedModel:
    import torch

    length = torch.export.Dim("n", min=1, max=context)
    example = (torch.ones((1, 7), dtype=torch.int64), torch.tensor(3), *extra)
    return _import(module, example, ({1: length}, None, *sizes))


def _import(module: Any, example: tuple[Any, ...], dynamic: tuple[Any, ...]) -> ImportedModel:
    from compiler.frontends.torch import import_torch

    return import_torch(module.eval(), example_inputs=example, dynamic_shapes=dynamic or None)


def _described(decoder: ImportedModel, kind: str, context: int, config: Any) -> CapturedDecoder:
    states = tuple(replace(state, axis=2) for state in decoder.states)
    rows = next((each.shape[1] for each in decoder.inputs if each.name == TOKENS), None)
    if rows is None or not states:
        raise InvalidModelError(f"the decoder of the {kind!r} model does not read tokens and a cache")
    vocabulary = int(config.vocab_size)
    tokens = IndexRequirement(TOKENS, str(vocabulary), {}, "the vocabulary", "0")
    model = replace(decoder, states=states, position=PositionSpec(POSITION, rows), indices=(*decoder.indices, tokens))
    return CapturedDecoder(model, kind, context, vocabulary)


def _cache_argument(module: Any) -> str:
    return "cache" if "cache" in _arguments(module.forward) else "past_key_values"


def _arguments(function: Any) -> Mapping[str, Any]:
    return inspect.signature(function).parameters
