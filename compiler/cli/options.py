"""Options that several commands have, and commands whose options are the fields of a dataclass, as typer reads them
from the parameters of a function."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


def option(help: str, metavar: str | None = None, *names: str, default: Any = None, **settings: Any) -> Any:
    """The default of a parameter or field that is an option, --ITS-NAME unless `names` are given; `...` where it has to
    be given. Settings: those of `typer.Option`."""
    return typer.Option(default, *names, metavar=metavar, help=help, **settings)


def flag(help: str, *names: str) -> Any:
    """The default of one that is False unless the option is there; without names typer would add a --no-NAME."""
    return typer.Option(False, *names, help=help)


def argument(help: str, metavar: str, *, default: Any = ...) -> Any:
    """The default of one that is given by position."""
    return typer.Argument(default, metavar=metavar, help=help, show_default=False)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, for programs.")]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        "-t",
        metavar="NAME",
        help="What to build for (znver4, znver4:16 for 16 cores); see `tensorwright targets`.",
    ),
]
ModelShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="INPUT=SIZES",
        help="Sizes of an input: a number fixes a dimension, a name keeps it dynamic. Repeat for other inputs.",
    ),
]
RunShapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME=SIZES",
        help="Sizes of an input (input_ids=1,64) or of a dynamic dimension (batch=8), 1 if not given.",
    ),
]
Constants = Annotated[
    list[str] | None,
    typer.Option(
        "--constant",
        metavar="INPUT=VALUE",
        help="Make an input a constant: a .npy file, a number, true, false, or a list. It is an input no longer.",
    ),
]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state",
        metavar="INPUT=OUTPUT",
        help="What a session keeps: of an ONNX model, the output with the next value of an input (* stands for "
        "the same text in both: past.*=present.*); of a PyTorch model, NAME of an input that it writes to; none: "
        "no states. Pairs of the usual names if not given.",
    ),
]
Capacity = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        metavar="ROWS",
        help="How many rows states that grow have room for, written in place; or a name, whose size each session "
        "chooses.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        "-i",
        metavar="NAME=VALUE",
        help="A .npy file, an array of an .npz file, a number, a list, or `random`; a lone FILE.npz gives all it "
        "holds. Inputs that are not given take the stored example or random values.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, metavar="N", help="How many threads a run uses.")]
Runs = Annotated[int | None, typer.Option("--runs", min=1, metavar="N", help="How many runs to time.")]
Seconds = Annotated[
    float, typer.Option("--seconds", min=0.01, metavar="S", help="How long to time when --runs is not given.")
]
ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="An .onnx, .pt2 or .gguf file, or a folder of a language model.", show_default=False
    ),
]
Samples = Annotated[
    list[Path] | None,
    typer.Option("--samples", "-s", metavar="FILE", help="An .npz file with an array for each input; repeat for more."),
]
ModuleOutput = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="The module to write; MODEL.twm here if not given."),
]
ModulePath = Annotated[Path, typer.Argument(metavar="MODULE", help="A .twm file.", show_default=False)]
AnyPath = Annotated[
    Path, typer.Argument(metavar="FILE", help="A module (.twm), or a model (.onnx, .pt2).", show_default=False)
]
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        metavar="PATH",
        help="Refuse a module that is not signed by this key: an Ed25519 public key (PEM), or a folder of them. "
        "Repeat for other keys.",
        show_default=False,
    ),
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="The passphrase of an encrypted private key; otherwise TENSORWRIGHT_PASSPHRASE, or you are asked for it.",
    ),
]
ConnectionKey = Annotated[
    Path | None,
    typer.Option(
        "--key",
        metavar="FILE",
        help="Connect encrypted, with this X25519 private key (`tensorwright key new --kind connection`).",
        show_default=False,
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """The options of commands that import a model."""

    shape: ModelShapes = None
    constant: Constants = None
    state: States = None
    capacity: Capacity = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompressionOptions(ImportOptions):
    """The options of commands that compress a model."""

    model: ModelPath
    samples: Samples = None
    output: ModuleOutput = None
    target: TargetName = "host"
    max_drop: float = option("How far the mean cosine similarity may drop.", "SHARE", default=0.01)
    report: Path | None = option("Write a report there, .html or .json.", "FILE")
    threads: Threads = None
    as_json: Json = False


def command_of(run: Callable[..., object], more: Sequence[inspect.Parameter] = ()) -> Callable[..., object]:
    """A function for `app.command(...)` with a parameter for each field of the dataclass that `run` takes as `given`.

    It calls `run` with what was given; with the values of `more` parameters, as a dictionary, behind it where there are
    any.
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
        for field in dataclasses.fields(options)
    ]
    parameters += more
    command.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": object}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = run.__doc__
    return command


def keywords_of(function: Callable[..., Any], given: object, **parsed: Any) -> dict[str, Any]:
    """The arguments of a function that a command's options name, as they are given or as `parsed`; those that say how a
    model is imported are left to `parse_imports`."""
    from compiler.support.options import ImportArguments

    known = inspect.signature(function).parameters.keys() - ImportArguments.__annotations__.keys()
    return {name: value for name, value in vars(given).items() if name in known} | parsed
