"""Text generation with language models: tokenizer, chat template, sampling and the decoding loop."""

from compiler.errors import QueueFullError
from compiler.generation.grammar import Grammar
from compiler.generation.handle import SequenceHandle, Usage
from compiler.generation.language_model import Conversation, LanguageModel, load
from compiler.generation.media import Media
from compiler.generation.options import Generation, GenerationOptions, TokenLogprob
from compiler.generation.output import Piece
from compiler.generation.scheduler import Scheduler
from compiler.generation.transcription import Transcription, transcribe

__all__ = [
    "Conversation",
    "Generation",
    "GenerationOptions",
    "Grammar",
    "LanguageModel",
    "Media",
    "Piece",
    "QueueFullError",
    "Scheduler",
    "SequenceHandle",
    "TokenLogprob",
    "Transcription",
    "Usage",
    "load",
    "transcribe",
]
