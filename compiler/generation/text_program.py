"""Text program: what a static executable holds beside a module to generate text; `text/language.cc` of the C++ runtime
reads it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from compiler.artifact import Artifact
from compiler.artifact.fields import FieldError, decode
from compiler.artifact.language_model import DESCRIPTION_ASSET, ENCODER_ASSET, TOKENIZER_ASSET, LanguageModelDescription
from compiler.artifact.native_tokenizer.character_sets import refused, stripped_by_python
from compiler.artifact.native_tokenizer.tokenizer import write_tokenizer
from compiler.artifact.native_tokenizer.writer import Writer
from compiler.errors import ArtifactError, InputError, OptionError
from compiler.generation.tokenizer import Tokenizer

# Contents that templates are tried with: what surrounds a message must not depend on it.
_PROBES = ("x", "  two words \n", "{{ a }} <b> & \"q\" 'r' \\", "\n\nfirst\nsecond\t", "1", "\u00e9\u6f22")


def has_text(artifact: Artifact) -> bool:
    """True if a module is a language model with a tokenizer, and so takes and gives text."""
    return DESCRIPTION_ASSET in artifact.assets and TOKENIZER_ASSET in artifact.assets


def text_program(artifact: Artifact, *, raw: bool = False) -> bytes:
    """The tokenizer, the chat template and the rules of a language model for a static executable.

    Args:
        artifact: one for which `has_text` is true.
        raw: leave the chat template out: prompts are continued as they are.

    Raises:
        OptionError: its tokenizer or its chat template has a part that the C++ runtime does not have, or the module
            reads more than the tokens of one sequence.
        ArtifactError: a part of the module is damaged.
        MissingDependencyError: a package of the extra `generate` is missing.
    """
    assets = artifact.assets
    try:
        description = decode(assets[DESCRIPTION_ASSET].tobytes(), LanguageModelDescription)
    except FieldError as error:
        raise ArtifactError(f"the module's description of its language model is damaged: {error}") from error
    forms = {
        "has an encoder": ENCODER_ASSET in assets,
        "was compiled for several sequences (--sequences)": description.sequences,
        "keeps adapters beside its weights": bool(description.adapters),
    }
    if form := next((form for form, holds in forms.items() if holds), None):
        raise OptionError(
            f"a static executable generates text with one sequence of tokens, but the module {form}",
            "write a plain runner with --no-text (text=None), or a bundle without --static",
        )
    content = assets[TOKENIZER_ASSET].tobytes()
    tokenizer = Tokenizer(content, description)
    writer = Writer()
    writer.number(min(description.context, 0xFFFFFFFF))
    writer.number(description.vocabulary)
    for tokens in (description.stop_tokens, description.suppressed, description.suppressed_first):
        writer.numbers(tokens)
    writer.numbers([edge for pair in stripped_by_python() for edge in pair])
    frames = [] if raw or description.chat_template is None else _frames(tokenizer)
    writer.number(len(frames))
    for texts, strips in frames:
        writer.texts(texts)
        writer.numbers([int(each) for each in strips])
    write_tokenizer(content, writer)
    return writer.content()


_Frame = tuple[list[str], list[bool]]  # the texts around messages, and which messages are stripped


def _frames(tokenizer: Tokenizer) -> list[_Frame]:
    """The chat template around a message of the user, and, where it takes one, a system message before it."""
    frames = [_frame(tokenizer, ("user",))]
    with suppress(InputError):  # a template may refuse system messages, and the program then does so too
        frames.append(_frame(tokenizer, ("system", "user")))
    return frames


def _frame(tokenizer: Tokenizer, roles: Sequence[str]) -> _Frame:
    def rendered(contents: Sequence[str]) -> str:
        return tokenizer.chat([{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)])

    marks = [f"\ue000{index}\ue001" for index in range(len(roles))]
    texts = [rendered(marks)]
    for mark in marks:
        head, found, tail = texts.pop().partition(mark)
        if not found or mark in tail:
            raise _changing()
        texts += [head, tail]
    strips = []
    for position in range(len(roles)):
        ways = {strip: [_filled(texts, marks, position, each, strip) for each in _PROBES] for strip in (False, True)}
        shown = [rendered([*marks[:position], each, *marks[position + 1 :]]) for each in _PROBES]
        strip = next((strip for strip, expected in ways.items() if expected == shown), None)
        if strip is None:
            raise _changing()
        strips.append(strip)
    return texts, strips


def _filled(texts: Sequence[str], marks: Sequence[str], index: int, content: str, strip: bool) -> str:
    contents = [*marks[:index], content.strip() if strip else content, *marks[index + 1 :]]
    return texts[0] + "".join(content + text for content, text in zip(contents, texts[1:], strict=True))


def _changing() -> OptionError:
    error = refused("a chat template that depends on the messages")
    return OptionError(error.message, "leave the template out with --raw (raw=True): prompts are continued as they are")
