"""Options of models that read or write text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compiler.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """Options of an embedder: tokens of its texts, and vectors of its outputs.

    Attributes:
        tokenizer: a tokenizer.json of the tokenizers library; None: the one in the module, if it has one.
        pooling: of outputs that have a vector for each token: their mean, the first ("cls") or the last one.
        normalize: vectors have length 1.
        max_tokens: of a text; more are cut off; None: as many as the module takes, 512 where it takes any number.
        pad_to_multiple_of: texts are padded to such a number of tokens, so that texts of about the same length run in
            one batch. Vectors must not depend on the padding, which is checked with the first text.
    """

    tokenizer: Path | None = None
    pooling: str = "mean"
    normalize: bool = True
    max_tokens: int | None = None
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.pad_to_multiple_of < 1:
            raise OptionError(f"pad_to_multiple_of must be at least 1, not {self.pad_to_multiple_of}")
        if self.pooling not in ("mean", "cls", "last"):
            raise OptionError(f"pooling must be mean, cls or last, not {self.pooling!r}")


@dataclass(frozen=True, kw_only=True)
class GenerationLimits:
    """Limits of a served language model.

    Attributes:
        max_sequences: texts that are generated at once.
        max_queue: requests that may wait; more are refused.
        context: tokens of a prompt and its answer; None: the model's context.
    """

    max_sequences: int = 8
    max_queue: int = 64
    context: int | None = None
