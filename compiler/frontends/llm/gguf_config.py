"""Configuration, names and weights of a decoder in a GGUF file."""

from __future__ import annotations

from dataclasses import replace

from compiler.errors import OptionError
from compiler.frontends.llm.config import DecoderConfig
from compiler.frontends.llm.decoder_config import decoder_config
from compiler.frontends.llm.families import ARCHITECTURES, Family, Gguf
from compiler.frontends.llm.gguf_file import GgufFile
from compiler.frontends.llm.gguf_settings import ROPE_TENSORS, gguf_settings
from compiler.frontends.llm.names import Names, gguf_names
from compiler.frontends.llm.parameters import Storage
from compiler.frontends.llm.weights import Checkpoint, renamed

# Reason why architectures of llama.cpp are not supported -> their names
_OTHERS = {
    "it is an encoder, which generates no text": "bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed"
    " modern-bert neo-bert nomic-bert nomic-bert-moe t5encoder",
    "it is a diffusion model, whose tokens attend to later ones": "dream llada llada-moe rnd1",
    "it has an encoder and a decoder, which are supported only in transformers folders": "t5",
    "it is not a language model": "clip pockettts qwen3tts wavtokenizer-dec",
    "it is a draft model for another model": "dflash eagle3 gemma4-assistant",
    "its layers keep states that are not supported": "plamo2",
    "the time mixing of RWKV 6, whose layers shift tokens and keep their own states, is not supported": "rwkv6"
    " rwkv6qwen2",
    "each of its layers has a mixture in parallel with attention and MLP": "arctic",
    "its query and key norms have separate weights for each head": "chameleon",
    "its layers have different weights for images and texts": "cogvlm",
    "its attention selects keys with an indexer, which is supported only in transformers folders": "deepseek32 glm-dsa",
    "it keeps several streams and compressed keys, which are not supported": "deepseek4",
    "llama.cpp does not support it; transformers folders are supported": "gptj",
    "groups of its experts share additional experts": "grovemoe",
    "its keys and values have different widths, which is supported only in transformers folders": "mimo2",
    "its experts are clamped with a separate limit per layer": "step35",
    "its layers add the embeddings again": "talkie",
}


def read_gguf(file: GgufFile) -> tuple[DecoderConfig, Names, Storage, Checkpoint]:
    """Return the configuration, names and weights of a GGUF file. Raises InvalidModelError if the metadata is
    incomplete or inconsistent, and OptionError if the architecture is not supported."""
    name = str(file.required("general.architecture"))
    if name not in ARCHITECTURES:
        reason = next((f": {why}" for why, names in _OTHERS.items() if name in names.split()), "")
        raise OptionError(
            f"{file.path}: the architecture {name!r} is not supported{reason}",
            f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    family, architecture = ARCHITECTURES[name]
    config = decoder_config(gguf_settings(file, family, architecture), name, family)
    checkpoint = Checkpoint(renamed(file, family.renames), str(file.path))
    checkpoint.ignore(ROPE_TENSORS)
    names = _names(architecture, config, file)
    if file.value(f"{name}.nextn_predict_layers"):
        checkpoint.ignore_layers(names.layer, len(config.layers))
    return config, names, _storage(family, architecture), checkpoint


def _storage(family: Family, found: Gguf) -> Storage:
    """Converters add the norm offset, transpose weights and sort fused rows."""
    bare = isinstance(family.storage, Storage) and family.storage.bare_norms
    return Storage(interleaved=found.interleaved, bare_norms=bare, decays=True)


def _names(architecture: Gguf, config: DecoderConfig, file: GgufFile) -> Names:
    names = gguf_names(architecture.norms)
    roles = {**names.roles, **architecture.roles}
    if config.parallel and "blk.0.ffn_norm.weight" not in file.names:  # both parts of a block read the same norm
        del roles["mlp_norm"]
    layer_names: dict[int, dict[str, str | None]] = {}
    for index in range(len(config.layers)):  # layers without attention may name their only norm after the MLP
        if f"blk.{index}.attn_norm.weight" not in file.names and f"blk.{index}.ffn_norm.weight" in file.names:
            layer_names[index] = {"attention_norm": "ffn_norm"}
    if architecture.second and all(f"blk.0.{name}.weight" in file.names for name in architecture.second.values()):
        roles |= architecture.second
    tables = [
        name if f"{name}.weight" in file.names and name != architecture.norm else None
        for name in ("position_embd", "token_embd_norm")
    ]
    return replace(
        names, norm=architecture.norm, roles=roles, positions=tables[0], embedding_norm=tables[1], own=layer_names
    )
