"""Options that the commands for language models share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli.options import keywords_of
from compiler.errors import OptionError, StorageError
from compiler.support.compilation import collecting_rarely

MaxNewTokens = Annotated[int, typer.Option(min=0, metavar="N", help="Generate at most so many tokens.")]
Temperature = Annotated[
    float, typer.Option(min=0, metavar="T", help="0 takes the most likely token; above, tokens are drawn.")
]
TopK = Annotated[int, typer.Option(min=0, metavar="K", help="Draw one of the K most likely tokens; 0 for all.")]
TopP = Annotated[float, typer.Option(metavar="P", help="Draw one of the most likely tokens that reach P together.")]
MinP = Annotated[
    float, typer.Option(metavar="P", help="Draw no token that is less than P times as likely as the likeliest.")
]
RepetitionPenalty = Annotated[
    float, typer.Option(metavar="R", help="Divide logits of tokens that were seen before; 1 for none.")
]
Stop = Annotated[
    list[str] | None, typer.Option(metavar="TEXT", help="End where this text appears; may be given several times.")
]
Speculative = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="Guess at most N tokens and check them in one run; the text stays the same. Needs a module that was "
        "compiled with --sequences.",
    ),
]
JsonSchema = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The text has to be JSON that is valid by this JSON schema.")
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        "--grammar", metavar="FILE", help="The text has to match this grammar in EBNF, whose first rule is root."
    ),
]
Regex = Annotated[
    str | None, typer.Option(metavar="PATTERN", help="The text as a whole has to match this regular expression.")
]
Draft = Annotated[
    Path | None,
    typer.Option(metavar="MODULE", help="A smaller model with the same tokens that guesses, for --speculative."),
]
Adapter = Annotated[
    str | None, typer.Option(metavar="NAME", help="The adapter of the module (compile --adapter NAME=DIR) to use.")
]
Seed = Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the random numbers.")]


Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="An image (PNG, JPEG, ...) that the prompt is about; may be given several times, in order.",
    ),
]
AudioFile = Annotated[
    Path | None, typer.Option("--audio", metavar="FILE", help="A WAV file; without a prompt it is transcribed.")
]
Language = Annotated[
    str | None, typer.Option(metavar="NAME", help="The language of --audio, as en; detected if not given.")
]


@collecting_rarely  # of what is imported nothing becomes garbage
def prepare_generation() -> None:
    """Import what generates text, so that the first token comes soon."""
    # A thread for each core would be started and spin, though numpy multiplies nothing of size here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import compiler.generation  # noqa: F401


def generation_options(given: Any, grammar: Any = None) -> Any:
    """`GenerationOptions` from the options of a command."""
    from compiler.generation import GenerationOptions

    return GenerationOptions(**keywords_of(GenerationOptions, given, stop=tuple(given.stop or ()), grammar=grammar))


def grammar_of(json_schema: Path | None, grammar: Path | None, regex: str | None) -> Any:
    """The `Grammar` that one of the options gives; None where none does.

    Raises OptionError where several do, StorageError where a file cannot be read.
    """
    from compiler.generation import Grammar

    if sum(each is not None for each in (json_schema, grammar, regex)) > 1:
        raise OptionError("give one of --json-schema, --grammar and --regex")
    if json_schema is not None:
        return Grammar.json_schema(_text_of(json_schema))
    if grammar is not None:
        return Grammar.ebnf(_text_of(grammar))
    return None if regex is None else Grammar.regex(regex)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} could not be read: {error}") from error
