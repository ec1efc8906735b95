"""GGUF files as a decoder's configuration, names and weights."""

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
from compiler.frontends.llm.weights import Checkpoint


def read_gguf(file: GgufFile) -> tuple[DecoderConfig, Names, Storage, Checkpoint]:
    """The configuration, names and weights of a GGUF file.

    Raises:
        InvalidModelError: the metadata is not complete or does not fit together.
        OptionError: the architecture is not supported.
    """
    name = str(file.required("general.architecture"))
    if name not in ARCHITECTURES:
        raise OptionError(
            f"{file.path}: the architecture {name!r} is not supported", f"supported: {', '.join(sorted(ARCHITECTURES))}"
        )
    family, found = ARCHITECTURES[name]
    config = decoder_config(gguf_settings(file, family, found), name, family)
    checkpoint = Checkpoint(file, str(file.path))
    checkpoint.ignore(ROPE_TENSORS)
    names = _names(found, config, file)
    if file.value(f"{name}.nextn_predict_layers"):
        checkpoint.ignore_layers(names.layer, len(config.layers))
    return config, names, _storage(family, found), checkpoint


def _storage(family: Family, found: Gguf) -> Storage:
    """Converters add the offset of norms, transpose weights and sort fused rows."""
    bare = isinstance(family.storage, Storage) and family.storage.bare_norms
    return Storage(interleaved=found.interleaved, bare_norms=bare, decays=True)


def _names(found: Gguf, config: DecoderConfig, file: GgufFile) -> Names:
    names = gguf_names(found.norms)
    roles = {**names.roles, **found.roles}
    if config.parallel and "blk.0.ffn_norm.weight" not in file.names:  # both parts of a block read what one norm gives
        del roles["mlp_norm"]
    if found.second and all(f"blk.0.{name}.weight" in file.names for name in found.second.values()):
        roles |= found.second
    tables = [
        name if f"{name}.weight" in file.names and name != found.norm else None
        for name in ("position_embd", "token_embd_norm")
    ]
    return replace(names, norm=found.norm, roles=roles, positions=tables[0], embedding_norm=tables[1])
