"""Families of decoders that are built without PyTorch, by the type in config.json and by GGUF architecture."""

from __future__ import annotations

from compiler.frontends.llm.families.family import Family, Gguf
from compiler.frontends.llm.families.gemma import GEMMA
from compiler.frontends.llm.families.gpt import GPT, GPT_FILES
from compiler.frontends.llm.families.latent import LATENT, LATENT_FILES
from compiler.frontends.llm.families.llama import LLAMA, LLAMA_FILES
from compiler.frontends.llm.families.mixtures import MIXTURE_FILES, MIXTURES
from compiler.frontends.llm.families.recurrent import RECURRENT, RECURRENT_FILES

FAMILIES: dict[str, Family] = {**LLAMA, **MIXTURES, **GEMMA, **LATENT, **GPT, **RECURRENT}
ARCHITECTURES: dict[str, tuple[Family, Gguf]] = {
    gguf.name: (family, gguf)
    for family in (*FAMILIES.values(), *LLAMA_FILES, *LATENT_FILES, *MIXTURE_FILES, *GPT_FILES, *RECURRENT_FILES)
    for gguf in family.gguf
}

__all__ = ["ARCHITECTURES", "FAMILIES", "Family", "Gguf"]
