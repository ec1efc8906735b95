"""A language model's folder or file as an imported model."""

from __future__ import annotations

from pathlib import Path

from compiler.frontends.imported_model import ImportedModel, IndexRequirement, PositionSpec, StateSpec, TensorSpec
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.decoder import LOGITS, POSITION, TOKENS, build_decoder
from compiler.frontends.llm.gguf_config import read_gguf
from compiler.frontends.llm.gguf_file import MAGIC, GgufFile
from compiler.frontends.llm.hugging_face import read_hugging_face
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.frontends.llm.parameters import Parameters


def is_language_model(path: Path) -> bool:
    """Whether a path is one that `import_language_model` takes: a GGUF file, or a folder with a config.json."""
    if path.is_dir():
        return (path / "config.json").exists()
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def import_language_model(path: Path, options: LanguageModelOptions | None = None) -> ImportedModel:
    """Import a language model.

    Args:
        path: a GGUF file, or a folder of the transformers library with config.json and safetensors.
        options: how it is built; None for the defaults.

    Raises:
        InvalidModelError, OptionError, StorageError, UnsupportedModelError, MissingDependencyError.
    """
    options = options or LanguageModelOptions()
    read = read_hugging_face(path) if path.is_dir() else read_gguf(GgufFile(path))
    config, names, storage, checkpoint = read
    built = build_decoder(config, Parameters(checkpoint, names, config, storage), options)
    checkpoint.check_complete()
    caches = [TensorSpec(name, _cache_shape(config), "float32") for name in built.caches]
    inputs = [TensorSpec(TOKENS, (1, "n"), "int64"), TensorSpec(POSITION, (), "int64"), *caches]
    rows = "n" if options.all_logits else 1
    logits = TensorSpec(LOGITS, (1, rows, config.vocabulary), "float32")
    outputs = [logits, *(TensorSpec(f"{each.name}_out", each.shape, each.dtype) for each in caches)]
    states = tuple(StateSpec(each.name, each.name, f"{each.name}_out", axis=2) for each in caches)
    return ImportedModel(
        mod=built.mod,
        inputs=inputs,
        outputs=outputs,
        indices=(IndexRequirement(TOKENS, str(config.vocabulary), {}, "the vocabulary", "0"),),
        states=states,
        position=PositionSpec(POSITION, "n"),
    )


def _cache_shape(config: DecoderConfig) -> tuple[int | str, ...]:
    return (1, config.key_heads, "capacity", config.head_size)
