"""A folder of the transformers library: config.json as a decoder's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compiler.errors import OptionError
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
from targets.extras import install_command


def model_type(folder: Path) -> str:
    """The model type in config.json, "" for none. Raises StorageError or InvalidModelError as `read_hugging_face`."""
    found = read_json(folder / "config.json").get("model_type")
    return found if isinstance(found, str) else ""


def read_hugging_face(
    folder: Path, options: LanguageModelOptions
) -> tuple[DecoderConfig, Names, Storage, Checkpoint, KeptAdapters | None]:
    """The configuration, names and weights of a folder, merged adapters included, and the adapters that are kept.

    Raises:
        StorageError: a file is missing.
        InvalidModelError: a file is damaged, config.json is not complete, or an adapter belongs to another model.
        OptionError: the type of the model, or a setting of it, is not supported.
    """
    path = folder / "config.json"
    values = read_json(path)
    kind = values.get("model_type")
    family = FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise OptionError(
            f"{path}: models of type {kind!r} are not supported",
            f"supported: {', '.join(sorted(FAMILIES))}; for others, {install_command('torch')} transformers: its"
            " own code is captured then",
        )
    settings = Settings(values, path, family.defaults, family.aliases)
    config = decoder_config(settings, str(kind), family)
    tied = True if settings.flag("tie_word_embeddings") else None
    weights = _weights(folder, options)
    kept = [Adapter(each) for each in options.kept_adapters.values()]
    adapters = KeptAdapters(weights, kept, family.renames) if kept else None
    checkpoint = Checkpoint(renamed(weights, family.renames), str(folder))
    checkpoint.ignore_suffixes(family.unused)
    names = family.names(settings) if callable(family.names) else family.names
    if settings.get("num_nextn_predict_layers"):  # layers behind the last one that predict further tokens
        checkpoint.ignore_layers(names.layer, len(config.layers))
    storage = family.storage(settings) if callable(family.storage) else family.storage
    return config, _names(names, checkpoint), replace(storage, tied=tied), checkpoint, adapters


def _weights(folder: Path, options: LanguageModelOptions) -> Reader:
    weights = open_folder(folder)
    if not options.adapters:
        return weights
    return AdaptedReader(weights, [Adapter(each) for each in options.adapters], rounds=options.precision is not None)


def _names(names: Names, checkpoint: Checkpoint) -> Names:
    """The names of the checkpoint: some were saved without the head, so that names lack the first part."""
    prefix = names.embedding.partition(".")[0] + "."
    bare = names.below(prefix)
    whole = checkpoint.has(f"{names.embedding}.weight") or not checkpoint.has(f"{bare.embedding}.weight")
    return names if whole else bare
