"""Options shared by several commands, and the conversion of a dataclass whose fields are options to the function
parameters that typer reads."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import typer


def option(help: str, metavar: str | None = None, *names: str, default: Any = None, **settings: Any) -> Any:
    """Return the default of a parameter or field that is an option, --ITS-NAME unless `names` are given; `...` if it is
    required. Settings are those of `typer.Option`."""
    return typer.Option(default, *names, metavar=metavar, help=help, **settings)


def flag(help: str, *names: str) -> Any:
    """Return the default of a flag that is False by default; without names typer would add a --no-NAME."""
    return typer.Option(False, *names, help=help)


def argument(help: str, metavar: str, *, default: Any = ...) -> Any:
    """Return the default of a positional argument."""
    return typer.Argument(default, metavar=metavar, help=help, show_default=False)


MODEL_PATH = argument("An .onnx, .pt2 or .gguf file, or a folder of a language model.", "MODEL")
MODULE_PATH = argument("A .twm file.", "MODULE")
ANY_PATH = argument("A module (.twm), or a model (.onnx, .pt2).", "FILE")
MODULE_OUTPUT = option("The module to write; MODEL.twm in this folder if not given.", "FILE", "--output", "-o")
JSON = flag("Print one JSON document on stdout, for programs.", "--json")
TARGET = option(
    "Target to build for (znver4, znver4:16 for 16 cores); see `tensorwright targets`.",
    "NAME",
    *("--target", "-t"),
    default="host",
)
MODEL_SHAPES = option(
    "Sizes of an input: a number fixes a dimension, a name keeps it dynamic. Repeat for other inputs.",
    "INPUT=SIZES",
    "--shape",
)
RUN_SHAPES = option(
    "Sizes of an input (input_ids=1,64) or of a dynamic dimension (batch=8), 1 if not given.", "NAME=SIZES", "--shape"
)
CONSTANTS = option(
    "Replace an input by a constant: a .npy file, a number, true, false, or a list.", "INPUT=VALUE", "--constant"
)
INPUTS = option(
    "A .npy file, an array of an .npz file, a number, a list, or `random`; FILE.npz alone gives all its arrays. Inputs "
    "that are not given use the stored example or random values.",
    "NAME=VALUE",
    *("--input", "-i"),
)
SAMPLES = option("An .npz file with an array for each input; repeat for more.", "FILE", "--samples", "-s")
THREADS = option("Number of threads of a run.", "N", min=1)
RUNS = option("Number of runs to time.", "N", min=1)
SECONDS = option("Time to measure if --runs is not given.", "S", default=3.0, min=0.01)
TRUSTED_KEYS = option(
    "Refuse a module that is not signed by this key: an Ed25519 public key (PEM), or a folder of them. Repeat for "
    "other keys.",
    "PATH",
    "--trusted-key",
    show_default=False,
)
PASSPHRASE_FILE = option(
    "File with the passphrase of an encrypted private key; otherwise TENSORWRIGHT_PASSPHRASE or a prompt.", "FILE"
)
CONNECTION_KEY = option(
    "Connect encrypted, with this X25519 private key (`tensorwright key new --kind connection`).",
    "FILE",
    "--key",
    show_default=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of commands that import a model."""

    shape: list[str] | None = MODEL_SHAPES
    constant: list[str] | None = CONSTANTS
    state: list[str] | None = option(
        "State of a session: for an ONNX model, the output with the next value of an input (* stands for the same "
        "text in both: past.*=present.*); for a PyTorch model, NAME of an input that it writes to; none: no states. "
        "Pairs with conventional names if not given.",
        "INPUT=OUTPUT",
    )
    capacity: str | None = option(
        "Capacity in rows of growing states, written in place; or a name, whose size each session chooses.", "ROWS"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionOptions(ImportOptions):
    """The options of commands that compress a model."""

    model: Path = MODEL_PATH
    samples: list[Path] | None = SAMPLES
    output: Path | None = MODULE_OUTPUT
    target: str = TARGET
    max_drop: float = option("Maximum drop of the mean cosine similarity.", "SHARE", default=0.01)
    report: Path | None = option("Write a report to this file, .html or .json.", "FILE")
    threads: int | None = THREADS
    as_json: bool = JSON


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """The options of commands that generate text with a language model."""

    max_new_tokens: int = option("Maximum number of generated tokens.", "N", default=256, min=0)
    temperature: float = option(
        "0 chooses the most likely token; above 0, tokens are sampled.", "T", default=0.0, min=0
    )
    top_k: int = option("Sample from the K most likely tokens; 0 for all.", "K", default=0, min=0)
    top_p: float = option("Sample from the most likely tokens whose probabilities add up to P.", "P", default=1.0)
    min_p: float = option("Never sample tokens less than P times as likely as the most likely one.", "P", default=0.0)
    repetition_penalty: float = option(
        "Divide the logits of earlier tokens by this; 1 for no penalty.", "R", default=1.0
    )
    stop: list[str] | None = option("Stop at this text; can be repeated.", "TEXT")
    seed: int | None = option("Of the random numbers.", "N", min=0)
    adapter: str | None = option("The adapter of the module (compile --adapter NAME=DIR) to use.", "NAME")
    speculative: int = option(
        "Guess at most N tokens and check them in one run; the text stays the same. Needs a module compiled "
        "with --sequences.",
        "N",
        default=0,
        min=0,
    )
    draft: Path | None = option("A smaller model with the same tokens, which guesses for --speculative.", "MODULE")
    threads: int | None = THREADS
    trusted: list[Path] | None = TRUSTED_KEYS


def command_of(run: Callable[..., object], more: Sequence[inspect.Parameter] = ()) -> Callable[..., object]:
    """Return a function for `app.command(...)` with a parameter for each field of the dataclass that `run` accepts as
    `given`, those of its base classes last.

    It calls `run` with an instance of the dataclass and, if there are `more` parameters, with a dictionary of their
    values.
    """
    options = get_type_hints(run)["given"]

    def command(**given: object) -> object:
        others = {each.name: given.pop(each.name) for each in more}
        return run(options(**given), *([others] if more else []))

    hints = get_type_hints(options, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in sorted(dataclasses.fields(options), key=lambda each: each.name not in options.__annotations__)
    ]
    parameters += more
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": object}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = run.__doc__
    return command


def keywords_of(function: Callable[..., Any], given: object, **parsed: Any) -> dict[str, Any]:
    """Return the arguments of a function that are options of a command, as given or as in `parsed`; import options are
    left to `parse_imports`."""
    from compiler.support.options import ImportArguments

    known = inspect.signature(function).parameters.keys() - ImportArguments.__annotations__.keys()
    return {name: value for name, value in vars(given).items() if name in known} | parsed
