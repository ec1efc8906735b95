"""Options that the commands for language models share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

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
Draft = Annotated[
    Path | None,
    typer.Option(metavar="MODULE", help="A smaller model with the same tokens that guesses, for --speculative."),
]
Seed = Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the random numbers.")]


def generation_options(**settings: Any) -> Any:
    """`GenerationOptions` out of options of a command; those that are None keep their defaults."""
    from compiler.generation import GenerationOptions

    stop = settings.pop("stop", None)
    return GenerationOptions(stop=tuple(stop or ()), **settings)
