"""Encoder-decoder models captured from transformers by `torch.export`: the encoder reads speech, an image or another
text once, and the decoder generates from its results.

The encoder's outputs are the decoder's inputs, by name: keys and values of cross attention, or the rows that replace an
image's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compiler.artifact.manifest import IndexRequirement
from compiler.errors import InvalidModelError, OptionError
from compiler.frontends.imported_model import ImportedModel, PositionSpec
from compiler.frontends.llm.captured_cache import with_cache_type
from compiler.frontends.llm.captured_products import with_precision
from compiler.frontends.llm.media_rows import FEATURES, SHIFTS
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.safetensors_folder import read_json
from compiler.frontends.llm.transformers_decoder import (
    LOGITS,
    POSITION,
    TOKENS,
    CapturedDecoder,
    cache_argument,
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
_ROWS, _SPECTROGRAM = "rows", "input_features"


@dataclass(frozen=True)
class CapturedPair:
    """Encoder and decoder.

    Attributes:
        decoder: None if it is built here.
        image_token: the placeholder of each row of an image or sound; None for models with cross attention.
        rows: maximum number of rows per image or sound; None if it depends on the size.
        frame: tokens before and after the rows of an image; None for none.
        spectrogram: bands and frames of the log-mel spectrograms that the encoder reads; None for none.
        masked: the encoder reads a mask of frames that are not padding, and returns only their rows.
    """

    encoder: ImportedModel
    decoder: CapturedDecoder | None
    image_token: int | None = None
    rows: int | None = None
    frame: tuple[int | None, int | None] = (None, None)
    spectrogram: tuple[int, int] | None = None
    masked: bool = False


def has_encoder(folder: Path) -> bool:
    """True if config.json names an encoder-decoder model. Raises StorageError or InvalidModelError if it is damaged."""
    names = read_json(folder / "config.json").get("architectures")
    return isinstance(names, list) and any(str(name).endswith(_CLASSES) for name in names)


def capture_pair(folder: Path, options: LanguageModelOptions) -> CapturedPair:
    """Capture the encoder of the model in a folder, and its decoder unless that is built here.

    Raises like `capture_decoder`.
    """
    torch, transformers = packages()
    options = checked_options(folder, options)
    if options.all_logits:
        raise OptionError(f"{folder}: all_logits does not apply to models with an encoder", "leave it out")
    crosses = bool(read_json(folder / "config.json").get("is_encoder_decoder"))
    loader = transformers.AutoModelForSeq2SeqLM if crosses else transformers.AutoModelForMultimodalLM
    if crosses and read_json(folder / "config.json").get("model_type") in _speech_types(transformers):
        loader = transformers.AutoModelForSpeechSeq2Seq
    model = load_model(folder, loader, encoder_only=not crosses and builds_decoder(folder))
    with torch.no_grad(), model_code(folder, model):
        pair = _with_cross_attention(model) if crosses else _with_media(folder, model)
    # Four bits are too few for results that are computed once and used by every token.
    encoding = replace(options, precision="int8") if options.precision == "int4" else options
    decoder = pair.decoder
    if decoder is None:
        return replace(pair, encoder=_in_precision(pair.encoder, encoding, None))
    entries = decoder.vocabulary
    return replace(
        pair,
        encoder=_in_precision(pair.encoder, encoding, entries),
        decoder=replace(
            decoder,
            model=with_cache_type(_in_precision(decoder.model, options, entries), options.cache_dtype(narrow=False)),
        ),
    )


def builds_decoder(folder: Path) -> bool:
    """True if the decoder of a model with images is built without PyTorch."""
    from compiler.frontends.llm.media_models import MEDIA_MODELS

    found = MEDIA_MODELS.get(str(read_json(folder / "config.json").get("model_type")))
    return found is not None and found.text is None


def _in_precision(model: ImportedModel, options: LanguageModelOptions, entries: int | None) -> ImportedModel:
    return replace(model, mod=with_precision(model.mod, options, entries))


def _speech_types(transformers: Any) -> Any:
    return transformers.models.auto.modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES


def _with_cross_attention(model: Any) -> CapturedPair:
    import torch

    config, kind = model.config, str(model.config.model_type)
    inputs, dynamic = _read_once(model)
    cache_name = cache_argument(model.get_decoder())
    encoder = _cross_encoder(model, cache_name)
    cross = encoder(**inputs)
    context = context_of(config, "max_target_positions")
    self_cache = _own_layers(model, cache_name, len(cross) // 2, context)
    rows = {2: torch.export.Dim(_ROWS, min=1)} if dynamic else {}
    decoder = _captured(
        _cross_decoder(model, self_cache), tuple(cross.values()), (tuple(rows for _ in cross),), context
    )
    return CapturedPair(
        _import(encoder, tuple(inputs.values()), tuple(dynamic.values())),
        _described(decoder, kind, context, config),
        spectrogram=(int(config.num_mel_bins), 2 * int(config.max_source_positions)) if kind == "whisper" else None,
    )


def _cross_encoder(model: Any, cache_name: str) -> Any:
    """Return the encoder with the decoder's cross attention projections: returns the keys and values of its layers."""
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


def _cross_decoder(model: Any, self_cache: Any) -> Any:
    """Return the decoder over the cache `own` and the encoder's keys and values; writes to its buffers."""
    import torch
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    count, hidden_size = len(self_cache.layers), _width(model)
    cache_name = cache_argument(model)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            register_caches(self, self_cache.layers)

        def forward(self, tokens: Any, position: Any, *cross: Any) -> dict[str, Any]:
            read_caches(self, self_cache.layers, position)
            cross_cache = DynamicCache()
            for index in range(count):
                cross_cache.update(cross[2 * index], cross[2 * index + 1], index)
            cache = EncoderDecoderCache(self_cache, cross_cache)
            cache.is_updated = dict.fromkeys(range(count), True)
            unread = BaseModelOutput(last_hidden_state=torch.zeros((1, 1, hidden_size), dtype=model.dtype))
            named = {cache_name: cache}
            result = model(decoder_input_ids=tokens, encoder_outputs=unread, use_cache=True, **named)
            return {LOGITS: result.logits[:, -1:].to(torch.float32)}

    return Decoder()


def _read_once(model: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return example inputs of the encoder, and their dynamic dimensions."""
    import torch

    config, name = model.config, model.main_input_name
    if name == _SPECTROGRAM:
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
    """Return the width of the encoder's output per token."""
    return int(getattr(model.config, "d_model", None) or model.get_input_embeddings().embedding_dim)


def _own_layers(model: Any, cache_name: str, count: int, context: int) -> Any:
    """Return the cache of the decoder's own tokens, sized by a first run."""
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


def _with_media(folder: Path, model: Any) -> CapturedPair:
    """Capture a model of images or sounds, whose rows replace tokens."""

    from compiler.frontends.llm import captured_media as media
    from compiler.frontends.llm.media_models import MEDIA_MODELS

    config, kind = model.config, str(model.config.model_type)
    if kind not in MEDIA_MODELS:
        raise OptionError(
            f"{folder}: models of type {kind!r} are not supported",
            f"of images or sounds and text: {', '.join(MEDIA_MODELS)}",
        )
    media_model = MEDIA_MODELS[kind]
    encoder = media_model.reads(model, media_model.rows)
    inputs, sizes = encoder.example()
    outputs = encoder(**inputs)
    decoder = None if media_model.text is None else _media_decoder(model, media_model, outputs)
    names = (f"{each}_token_{{}}" for each in ("boi", "eoi"))
    first, last = (getattr(config, each.format("index"), getattr(config, each.format("id"), None)) for each in names)
    any_size = isinstance(encoder, media.Patches | media.PackedTiles)
    spectrogram = inputs[_SPECTROGRAM].shape if _SPECTROGRAM in inputs else None
    return CapturedPair(
        _import(encoder, tuple(inputs.values()), tuple(sizes.values())),
        decoder,
        int(getattr(config, media_model.token)),
        rows=None if any_size else outputs[FEATURES].shape[0] // media.EXAMPLES,
        frame=(first, last),
        spectrogram=None if spectrogram is None else (spectrogram[1], spectrogram[2]),
        masked=media.KEPT in outputs,
    )


def _media_decoder(model: Any, found: Any, outputs: dict[str, Any]) -> CapturedDecoder:
    """Capture the decoder of a model, which takes an encoder's `outputs`."""
    import torch

    from compiler.frontends.llm import captured_media as media

    text = model.config.get_text_config()
    context = context_of(text, "max_position_embeddings")
    decoder = media.MediaDecoder(model, found, _text_cache(getattr(model.model, found.text), context))
    features = [outputs[name] for name in (FEATURES, SHIFTS, media.DEEP) if name in outputs]
    rows = {0: torch.export.Dim(_ROWS, min=1)}
    captured = _captured(decoder, (torch.tensor(0), *features), (None, *(rows for _ in features)), context)
    return _described(captured, str(model.config.model_type), context, text)


def _text_cache(text: Any, context: int) -> Any:
    import torch
    from transformers.cache_utils import DynamicCache

    cache = DynamicCache()
    text(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=True, **{cache_argument(text): cache})
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
    tokens = IndexRequirement(input=TOKENS, size=str(vocabulary), where="the vocabulary", least="0")
    model = replace(decoder, states=states, position=PositionSpec(POSITION, rows), indices=(*decoder.indices, tokens))
    return CapturedDecoder(model, kind, context, vocabulary)
