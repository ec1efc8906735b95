"""Folders of the transformers library: reads config.json as a decoder's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from compiler.errors import InvalidModelError, OptionError, UserError
from compiler.frontends.llm.adapters import AdaptedReader, Adapter, KeptAdapters
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.decoder_config import decoder_config
from compiler.frontends.llm.families import FAMILIES
from compiler.frontends.llm.names import Names
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.quantized.folder import open_folder
from compiler.frontends.llm.safetensors_folder import read_json
from compiler.frontends.llm.settings import Settings
from compiler.frontends.llm.weights import Checkpoint, Reader, renamed
from compiler.support import model_files
from targets.extras import install_command

# Model types that also read images or sounds, with a text part that is the decoder in 'text_config'.
_WITH_TEXT = (
    "aya_vision",
    "cohere2_vision",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "exaone4_5",
    "gemma3n",
    "gemma4",
    "got_ocr2",
    "janus",
    "kimi_k25",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "llama4",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "llava_onevision1_5",
    "minicpmv4_6",
    "minicpmv4_7",
    "mistral3",
    "nemotron_h_omni",
    "ovis2",
    "qianfan_ocr",
    "qwen3_5",
    "qwen3_5_moe",
    "video_llama_3",
    "video_llava",
    "vipllava",
)
_TEXT = "language_model."
# transformers 5.24 and 5.25 save the layers of Kimi K2.5's and Qianfan-OCR's texts under the names of their encoders',
# "blocks" and "encoder.layers", and the text of LLaVA-OneVision 1.5 as "model.model.".
_NESTED = tuple(f"model.model.{each}." for each in ("embed_tokens", "layers", "norm"))
_TEXT_RENAMES = {
    f"{_TEXT}model.blocks.": "model.layers.",
    f"{_TEXT}model.encoder.layers.": "model.layers.",
    f"model.{_TEXT}": "model.",
    _TEXT: "",
    **{each: each.removeprefix("model.") for each in _NESTED},
}


def decoder_settings(folder: Path) -> tuple[str, dict[str, Any], bool]:
    """Return the type of a folder's decoder ("" for none), its settings, and True if it is part of a larger model.

    Raises StorageError or InvalidModelError like `read_hugging_face`.
    """
    values = read_json(folder / "config.json")
    text = values.get("text_config")
    is_part = False
    if values.get("model_type") in _WITH_TEXT and isinstance(text, dict):
        tied = values.get("tie_word_embeddings", text.get("tie_word_embeddings"))
        values, is_part = {**text, "tie_word_embeddings": tied}, True
    kind = values.get("model_type")
    return kind if isinstance(kind, str) else "", values, is_part


def is_language_model(path: Path) -> bool:
    """True as in `model_files`, and for the folder of a decoder whose class has no head, or is not stated."""
    if model_files.is_language_model(path):
        return True
    try:
        kind, values, _ = decoder_settings(path)
    except UserError:
        return False
    names = values.get("architectures") or []
    return kind in FAMILIES and isinstance(names, list) and all(str(name).endswith("Model") for name in names)


def read_hugging_face(
    folder: Path, options: LanguageModelOptions
) -> tuple[DecoderConfig, Names, Storage, Checkpoint, KeptAdapters | None]:
    """Return the configuration, names and weights of a folder, including merged adapters, and the separate adapters.

    Raises:
        StorageError: a file is missing.
        InvalidModelError: a file is damaged, config.json is incomplete, or an adapter belongs to another model.
        OptionError: the model type, or one of its settings, is not supported.
    """
    path = folder / "config.json"
    kind, values, is_part = decoder_settings(folder)
    family = FAMILIES.get(kind)
    if family is None:
        raise OptionError(
            f"{path}: models of type {kind!r} are not supported",
            f"supported: {', '.join(sorted(FAMILIES))}; for others, {install_command('torch')} transformers: its"
            " own code is then captured",
        )
    settings = Settings(values, path, family.defaults, family.aliases)
    config = decoder_config(settings, kind, family)
    tied = settings.flag("tie_word_embeddings")
    weights = _weights(folder, options)
    separate = [Adapter(each) for each in options.kept_adapters.values()]
    has_others = is_part or any(_TEXT in name for name in weights.names)
    renames = {**_TEXT_RENAMES, **family.renames} if has_others else family.renames
    adapters = KeptAdapters(weights, separate, renames) if separate else None
    checkpoint = Checkpoint(renamed(weights, renames), str(folder))
    checkpoint.ignore_suffixes(family.unused)
    if has_others:
        others = [name for name in weights.names if _TEXT not in name and not name.startswith((*_NESTED, "lm_head."))]
        checkpoint.ignore(others)
    names = family.names(settings) if callable(family.names) else family.names
    if not tied and not checkpoint.has(f"{names.head}.weight"):
        if not is_part or settings.get("tie_word_embeddings") is not None:
            raise InvalidModelError(
                f"{folder} has no head ({names.head}.weight), and config.json does not tie it to the embedding",
                "it is a model without a head, for instance an embedder; save it with AutoModelForCausalLM",
            )
        tied = True  # the default of the whole model
    if settings.get("num_nextn_predict_layers"):  # layers after the last one that predict more tokens
        checkpoint.ignore_layers(names.layer, len(config.layers))
    storage = family.storage(settings) if callable(family.storage) else family.storage
    return config, _names(names, checkpoint), replace(storage, tied=tied), checkpoint, adapters


def _weights(folder: Path, options: LanguageModelOptions) -> Reader:
    weights = open_folder(folder)
    if not options.adapters:
        return weights
    return AdaptedReader(weights, [Adapter(each) for each in options.adapters], rounds=options.precision is not None)


def _names(names: Names, checkpoint: Checkpoint) -> Names:
    """Adapt the names to the checkpoint: some were saved without the head, so that names lack the first part."""
    prefix = names.embedding.partition(".")[0] + "."
    bare = names.below(prefix)
    whole = checkpoint.has(f"{names.embedding}.weight") or not checkpoint.has(f"{bare.embedding}.weight")
    return names if whole else bare
