"""Text out of language models: tokenizer, chat template, sampling and the loop around a compiled module."""

from compiler.generation.language_model import Conversation, LanguageModel, load
from compiler.generation.options import GenerationOptions
from compiler.generation.result import Generation, TokenLogprob

__all__ = ["Conversation", "Generation", "GenerationOptions", "LanguageModel", "TokenLogprob", "load"]
