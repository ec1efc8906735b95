"""`PromptReader`: converts prompts to tokens, and images or speech to encoder inputs, without running a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypedDict

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import InputError
from compiler.generation.chat_templates import Messages
from compiler.generation.media import Media, with_media
from compiler.generation.tokenizer import Tokenizer


class Chat(TypedDict):
    """Messages with tools and variables for a chat template: see `LanguageModel.chat_tokens`."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None
    names: Mapping[str, object]


Prompt = str | Messages | Chat | Sequence[int]


@dataclass(frozen=True)
class PromptReader:
    """Reads prompts for a model.

    Attributes:
        tokenizer: None for models compiled without one, which accept only tokens.
        encoder_input: name and rank of the encoder's first input; None for models without an encoder.
        context: maximum number of tokens; texts that cannot fit are refused without tokenizing. None: no limit.
    """

    description: LanguageModelDescription
    tokenizer: Tokenizer | None
    encoder_input: tuple[str, int] | None = None
    context: int | None = None

    def tokens_of(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt. Raises InputError if it is empty, or has tokens outside the vocabulary."""
        if isinstance(prompt, Mapping) and "messages" in prompt:
            return self._encoded(self.rendered(prompt), special=False)
        if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Collection):
            raise InputError(
                f"a prompt cannot be of type {type(prompt).__name__}",
                "give a text, a list of messages, or a list of tokens",
            )
        if not prompt and self.description.start:
            return list(self.description.start)
        if isinstance(prompt, str):
            tokens = self._encoded(prompt, special=True)
        elif all(isinstance(each, Mapping) for each in prompt) and len(prompt):
            messages: Any = prompt
            tokens = self.chat_tokens(messages)
        else:
            tokens = [_checked_token(each, self.description.vocabulary) for each in prompt]
        if not tokens:
            raise InputError("the prompt is empty", "give at least one token")
        return tokens

    def chat_tokens(
        self, messages: Messages, tools: Sequence[Mapping[str, Any]] | None = None, **names: object
    ) -> list[int]:
        """See `LanguageModel.chat_tokens`."""
        return self._encoded(self.required_tokenizer().chat(messages, tools, **names), special=False)

    def prepared(self, prompt: Prompt, media: Media | None) -> tuple[list[int], Mapping[str, Any] | None]:
        """Return the tokens of a prompt with image placeholders, and the encoder's inputs; None if there are none.

        Raises InputError as `tokens_of`, and if media cannot be read or do not fit the model or the prompt.
        """
        if media is None:
            return self.tokens_of(prompt), None
        if self.encoder_input is None:
            raise InputError(
                "the model has no encoder, and reads the prompt alone",
                "leave media out, or compile the model with images=True",
            )
        inputs, texts, marker = media.prepared(self.description, *self.encoder_input)
        if not texts:
            return self.tokens_of(prompt), inputs
        if isinstance(prompt, str):
            return self._encoded(with_media(prompt, texts, marker), special=True), inputs
        is_chat = isinstance(prompt, Mapping) and "messages" in prompt
        if not is_chat and (not prompt or not all(isinstance(each, Mapping) for each in prompt)):
            raise InputError(
                "images and sounds need a prompt that is a text or messages", "give the encoder's inputs as arrays"
            )
        return self._encoded(with_media(self.rendered(prompt), texts, marker), special=False), inputs

    def rendered(self, prompt: Any) -> str:
        """Render messages or a `Chat` to text. Raises InputError if the chat template refuses it."""
        if not isinstance(prompt, Mapping):
            return self.required_tokenizer().chat(prompt)
        names = prompt.get("names") or {}
        if not all(isinstance(name, str) and name not in ("messages", "tools", "self") for name in names):
            raise InputError(f"a chat template cannot be given the names {', '.join(map(str, names))[:80]}")
        return self.required_tokenizer().chat(prompt["messages"], prompt.get("tools"), **names)

    def required_tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises InputError if the model has none."""
        if self.tokenizer is None:
            raise InputError("the model was compiled without a tokenizer", "give the prompt as tokens")
        return self.tokenizer

    def _encoded(self, text: str, *, special: bool) -> list[int]:
        tokenizer = self.required_tokenizer()
        self.check_length(text)
        return tokenizer.encode(text, special=special)

    def check_length(self, text: str) -> None:
        """Raise InputError if a text has more characters than a full context of tokens."""
        if self.context is not None and len(text) > self.context * self.longest_token:
            raise InputError(
                f"the prompt has {len(text)} characters, and {self.context * self.longest_token} at most can fit the "
                f"context of {self.context} tokens",
                "give a shorter prompt",
            )

    @cached_property
    def longest_token(self) -> int:
        """Maximum number of text bytes per token."""
        return self.required_tokenizer().longest_token()


def _checked_token(token: Any, vocabulary: int) -> int:
    if isinstance(token, bool) or not hasattr(token, "__index__") or not 0 <= int(token) < vocabulary:
        raise InputError(f"{token!r} is not a token", f"tokens are whole numbers from 0 to {vocabulary - 1}")
    return int(token)
