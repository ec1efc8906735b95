"""`tensorwright calibrate`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from compiler.cli import options
from compiler.cli.arguments import load_archive
from compiler.cli.options import argument, command_of, option
from compiler.cli.output import print_json, print_line
from compiler.errors import OptionError

HELP = """Measure the accuracy and cost of a serving policy on labelled data before it is used.

Each command writes a file that the server requires for the policy.

[bold]Typical[/]

  tensorwright calibrate cascade small.twm large.twm --samples data.npz --labels label -o cascade.json
  tensorwright calibrate semantic-cache embedder.twm --pairs pairs.jsonl -o semantic.json
"""

_CASCADE_HELP = """Choose the threshold of a cascade, and report its expected cost and accuracy.

The small model answers, except for rows whose score is below the threshold: these go to the large model. The threshold
is chosen so that the fraction of correct rows drops by at most --max-drop. Without --labels a row is correct if its
largest output is that of the large model. It is an error if the cascade costs as much as the large model alone.

[bold]Typical[/]

  tensorwright calibrate cascade small.twm large.twm --samples data.npz --labels label -o cascade.json

[bold]Examples[/]

  An early exit: the second half of a network continues from the output of the first:
    tensorwright calibrate cascade first.twm second.twm --feeds hidden=hidden --samples data.npz --labels label
"""

_SEMANTIC_HELP = """Choose the threshold of a semantic cache, and measure its false hits.

The pairs are lines of JSON: {"one": "How do I log in?", "other": "How can I log in", "same": true}; at least 30 with
the same meaning and 30 near misses. Hits and false hits are measured by cross-validation. It is an error if more false
hits remain than --max-false-hits allows.

[bold]Typical[/]

  tensorwright calibrate semantic-cache embedder.twm --pairs pairs.jsonl -o semantic.json

[bold]Examples[/]

  Synonyms, and a tokenizer that the module does not contain:
    tensorwright calibrate semantic-cache embedder.twm --pairs pairs.jsonl --synonyms movie,film --tokenizer t.json
"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
    group.command("cascade", help=_CASCADE_HELP)(command_of(_cascade))
    group.command("semantic-cache", help=_SEMANTIC_HELP)(_semantic_cache)
    app.add_typer(group, name="calibrate")


def _semantic_cache(
    embedder: Path = argument("The embedder, a .twm file.", "MODULE"),
    pairs: Path = option("Labelled pairs, one JSON object per line.", "FILE", default=...),
    output: Path = option("The calibration to write.", "FILE", "--output", "-o", default=Path("semantic.json")),
    tokenizer: Path | None = option("A tokenizer.json; the module's own if not given.", "FILE"),
    max_false_hits: float = option("Maximum number of hits among pairs of different meaning.", "SHARE", default=0.0),
    extra_words: int = option("Content words that one of the two texts may have in addition.", "N", default=0),
    synonyms: list[str] | None = option("Words to treat as equal; repeat for more.", "WORD,WORD"),
    as_json: bool = options.JSON,
) -> None:
    from compiler.cli.paths import check_report
    from compiler.runtime import load
    from compiler.runtime.prediction.texts import TextEmbedder
    from compiler.serving.caches.semantic_calibration import calibrate_semantic_cache, read_pairs

    check_report(output, (".json",))
    calibration = calibrate_semantic_cache(
        TextEmbedder(load(embedder), tokenizer),
        read_pairs(pairs),
        max_false_hits=max_false_hits,
        extra=extra_words,
        synonyms=[group.split(",") for group in synonyms or []],
    )
    calibration.save(output)
    if as_json:
        print_json({"path": str(output), **asdict(calibration)})
        return
    print_line(str(calibration))
    print_line(f"wrote {output}")


@dataclass(frozen=True, kw_only=True)
class _CascadeOptions:
    small: Path = argument("The small model, a .twm file.", "SMALL")
    large: Path = argument("The large model, a .twm file.", "LARGE")
    samples: Path = option("An .npz file with an array of rows for each input.", "FILE", "--samples", "-s", default=...)
    labels: str | None = option("The array in the samples with the class of each row.", "NAME")
    output: Path = option("The calibration to write.", "FILE", "--output", "-o", default=Path("cascade.json"))
    score: str = option(
        "Certainty score of the small model: margin, probability, softmax or value.", "NAME", default="margin"
    )
    scored_output: str | None = option("The output to score; the only one if not given.", "NAME")
    max_drop: float = option("Maximum drop of the fraction of correct rows.", "SHARE", default=0.0)
    feeds: list[str] | None = option(
        "An input of LARGE that is an output of SMALL: an early exit of one network; repeat for more.", "INPUT=OUTPUT"
    )
    as_json: bool = options.JSON


def _fed(text: str) -> tuple[str, str]:
    name, _, output = text.partition("=")
    if not name or not output:
        raise OptionError(f"--feeds {text!r} is not INPUT=OUTPUT", "as in --feeds hidden=hidden")
    return name, output


def _cascade(given: _CascadeOptions) -> None:
    from compiler.cli.paths import check_report
    from compiler.runtime import load
    from compiler.serving.policies.cascade_calibration import BothModels, calibrate_cascade, classification_accuracy

    check_report(given.output, (".json",))
    feeds = dict(map(_fed, given.feeds or []))
    modules = load(given.small), load(given.large)
    samples = load_archive(given.samples, "--samples")
    run = BothModels(*modules, feeds).large
    evaluate, scored = classification_accuracy(modules[1], samples, given.labels, given.scored_output, run=run)
    calibration = calibrate_cascade(
        *modules, evaluate, score=given.score, output=scored, max_drop=given.max_drop, feeds=feeds
    )
    calibration.save(given.output)
    if given.as_json:
        print_json({"path": str(given.output), "cost_share": calibration.cost_share, **asdict(calibration)})
        return
    print_line(str(calibration))
    print_line(f"wrote {given.output}")
