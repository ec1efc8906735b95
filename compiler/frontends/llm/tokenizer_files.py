"""The tokenizer of a Hugging Face folder: its files, validated against the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.errors import ArtifactError, InvalidModelError
from compiler.frontends.llm.folder_tokenizers import read_folder_tokenizer, token_text
from compiler.frontends.llm.safetensors_folder import read_bytes, read_json
from compiler.support.tokenizer_file import check_tokenizer

_MAX_TOKENS = 1 << 31


@dataclass(frozen=True)
class TokenizerFiles:
    """The tokenizer data that a module stores.

    Attributes:
        content: a file of the tokenizers library; None if the model has none.
        stop_tokens, begin, end, chat_template, tool_template: see `LanguageModelDescription`.
    """

    content: bytes | None
    stop_tokens: tuple[int, ...]
    begin: str = ""
    end: str = ""
    chat_template: str | None = None
    tool_template: str | None = None

    def text_of(self, token: int) -> str | None:
        """Return the text of an added token; None if there is none."""
        return None if self.content is None else _added_tokens(self.content).get(token) or None

    def stored(self) -> bytes | None:
        """Return `content` as stored in a module: merges as strings, which the library reads in two thirds of the time
        of lists. Pairs that contain a space stay lists.

        Raises InvalidModelError if a text is not valid Unicode.
        """
        if self.content is None:
            return None
        parsed = json.loads(self.content)
        model = parsed["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()]
        if all(text.count(" ") == 1 and not text.startswith("#version") for text in merges):
            parsed["model"] = {**model, "merges": merges} if merges else model
        try:
            return json.dumps(parsed, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise InvalidModelError(f"a text of tokenizer.json is not valid Unicode: {error}") from error

    def check_fits(self, vocabulary: int, origin: str, others: Sequence[int] = ()) -> None:
        """Raise InvalidModelError if it, or `others`, has tokens that the model lacks."""
        largest = max((*self.stop_tokens, *others), default=0)
        if self.content is not None:
            largest = max(largest, _largest_token(self.content, origin))
        if largest >= vocabulary:
            raise InvalidModelError(
                f"{origin}: the tokenizer has token {largest}, but the model has a vocabulary of {vocabulary} tokens",
                "use the tokenizer and the weights of the same model",
            )


def _added_tokens(content: bytes) -> dict[int, str]:
    """Return the texts of added tokens in a file already read by `_largest_token`."""
    return {each["id"]: str(each.get("content", "")) for each in json.loads(content).get("added_tokens") or []}


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer files of a folder. Raises InvalidModelError if a file is damaged, and StorageError if a file
    cannot be read."""
    settings = _optional_json(folder / "tokenizer_config.json")
    templates = _chat_templates(folder, settings)
    generation = _optional_json(folder / "generation_config.json")
    config = _optional_json(folder / "config.json")
    text = config.get("text_config")  # in models that also read images or sounds
    tables = (generation, config, text if isinstance(text, dict) else {})
    stops = next((each["eos_token_id"] for each in tables if each.get("eos_token_id") is not None), None)
    return TokenizerFiles(
        content=read_folder_tokenizer(folder, settings),
        stop_tokens=_tokens(stops, folder),
        begin=token_text(settings.get("bos_token")),
        end=token_text(settings.get("eos_token")),
        chat_template=templates.get("default", templates.get("tool_use")),
        tool_template=templates.get("tool_use"),
    )


@dataclass(frozen=True)
class TextRules:
    """Tokens that start a text, and tokens that are never generated, or never first: see `LanguageModelDescription`."""

    start: tuple[int, ...]
    suppressed: tuple[int, ...]
    suppressed_first: tuple[int, ...]


def read_text_rules(folder: Path) -> TextRules:
    """Read the text rules of a folder from generation_config.json, falling back to config.json. Raises like
    `read_tokenizer_files`."""
    settings = {**_optional_json(folder / "config.json"), **_optional_json(folder / "generation_config.json")}

    def tokens(name: str) -> tuple[int, ...]:
        return _tokens(settings.get(name), folder, name)

    start = [*tokens("decoder_start_token_id"), *tokens("forced_bos_token_id")]
    forced = settings.get("forced_decoder_ids") or []
    for pair in forced if isinstance(forced, list) else [forced]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise InvalidModelError(
                f"{folder}: 'forced_decoder_ids' has {str(pair)[:80]!r}, not a position and a token"
            )
        if pair[0] != len(start) or pair[1] is None:
            break  # the language is detected at run time, as is everything after it
        start += _tokens(pair[1], folder, "forced_decoder_ids")
    return TextRules(tuple(start), tokens("suppress_tokens"), tokens("begin_suppress_tokens"))


def _chat_templates(folder: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Return the chat templates by name, from their own files, or else from the settings (for processors also in a
    separate file)."""
    files = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    files["default"] = folder / "chat_template.jinja"
    templates = {name: _text(path) for name, path in files.items() if path.exists()}
    if templates:
        return templates
    template = settings.get("chat_template") or _optional_json(folder / "chat_template.json").get("chat_template")
    listed = template if isinstance(template, list) else [{"name": "default", "template": template}]
    named = [(each.get("name"), each.get("template")) for each in listed if isinstance(each, dict)]
    return {name: text for name, text in named if isinstance(name, str) and isinstance(text, str)}


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise InvalidModelError(f"{path} is not valid UTF-8: {error}") from error


def _tokens(value: Any, folder: Path, name: str = "eos_token_id") -> tuple[int, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each < _MAX_TOKENS for each in values):
        raise InvalidModelError(f"{folder}: {name!r} is {str(value)[:80]!r}, not a token or a list of tokens")
    return tuple(dict.fromkeys(values))


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _largest_token(content: bytes, origin: str) -> int:
    try:
        parsed = json.loads(content)
        check_tokenizer(parsed, f"{origin}: tokenizer.json")
        vocabulary = parsed["model"]["vocab"]
        own = max(vocabulary.values(), default=0) if isinstance(vocabulary, dict) else len(vocabulary) - 1
        return max(own, *(each["id"] for each in parsed.get("added_tokens") or [{"id": 0}]))
    except ArtifactError as error:
        raise InvalidModelError(error.message, error.hint) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(f"{origin}: tokenizer.json is damaged: {error}") from error
