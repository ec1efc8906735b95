"""Text to tokens and back, and chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from compiler.artifact.language_model import LanguageModelDescription
from compiler.errors import ArtifactError, InputError
from compiler.support.optional import optional_module

Messages = Sequence[Mapping[str, Any]]
_ROLES = ("system", "user", "assistant", "tool")


class Tokenizer:
    """The tokenizer of a module."""

    def __init__(self, content: bytes, description: LanguageModelDescription) -> None:
        """Read a file of the tokenizers library.

        Raises:
            ArtifactError: it is damaged.
            MissingDependencyError: the package tokenizers is not installed.
        """
        tokenizers = optional_module("tokenizers", "generate", "turns text into tokens")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the package raises plain Exception
            raise ArtifactError(f"the tokenizer of the module cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._description = description

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of a text; `special` puts those before it that the model expects.

        Raises InputError where the text is not valid Unicode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error}", "decode it as UTF-8 first") from error
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of tokens; special ones are left out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special)
        return text

    def chat(self, messages: Messages) -> str:
        """Messages ({"role": ..., "content": ...}) as the prompt of the assistant's next one.

        Raises InputError where the module has no chat template, or it refuses the messages.
        """
        template = self._description.chat_template
        if template is None:
            raise InputError("the model has no chat template", "give the prompt as a text")
        for message in messages:
            if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
                raise InputError(f"{message!r} is not a message", 'a message is {"role": "user", "content": "..."}')
        jinja2 = optional_module("jinja2", "generate", "fills in chat templates")
        sandbox = optional_module("jinja2.sandbox", "generate", "fills in chat templates")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
        environment.filters["tojson"] = _to_json
        names = {"bos_token": self._description.begin, "eos_token": self._description.end}
        try:
            text: str = environment.from_string(template).render(
                messages=list(messages), add_generation_prompt=True, **names
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses the messages: {error}") from error
        return text


def _refuse(message: str) -> NoReturn:
    jinja2 = optional_module("jinja2", "generate", "fills in chat templates")
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False, **{key: each for key, each in options.items() if key == "indent"})
