"""Decoder-only language models: import of a Hugging Face folder or a GGUF file as a Relax module, without torch."""

from compiler.frontends.llm.config import DecoderConfig, LayerConfig
from compiler.frontends.llm.importer import import_language_model
from compiler.frontends.llm.options import LanguageModelOptions

__all__ = ["DecoderConfig", "LanguageModelOptions", "LayerConfig", "import_language_model"]
