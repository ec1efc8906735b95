"""`tensorwright search`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import compiler
from compiler.cli import options
from compiler.cli.arguments import load_archives, parse_fixed, parse_numbers
from compiler.cli.options import command_of, keywords_of, option
from compiler.cli.output import print_json, print_line
from compiler.cli.progress import Steps

HELP = """Search the sub-networks of a model for the most accurate one that meets a budget on a target, and compile it.

Channels, attention heads and residual layers can be removed, filters cropped, and the precision chosen per layer. The
cost of candidates comes from a table of kernels, timed on this machine or computed by the target's model. Candidates
are scored by the mean cosine similarity with the model on the samples. Training and your own metrics need Python:
tensorwright.search(net, budget, train=..., evaluate=...).

[bold]Typical[/]

  tensorwright search model.onnx --budget ms=5 --samples a.npz -o model.twm

[bold]Examples[/]

  For a device, with a space from a file, resumable:
    tensorwright search model.onnx -b ms=5 -b mb=2 -t raspberry-pi-5 --space space.yaml --samples a.npz --storage s.db

  The file:
    space:
      channels: [0.5, 0.75]
      layers: true
      precision: [int8, float32]
"""


@dataclass(frozen=True, kw_only=True)
class _Options:
    model: Path = options.MODEL_PATH
    budget: list[str] = option(
        "A limit: ms, mb (parameters), peak_mb (activations), cycles or sram_kb. Repeat for others.",
        "NAME=LIMIT",
        "--budget",
        "-b",
        default=...,
    )
    space: Path | None = option("A YAML file with the search space.", "FILE")
    samples: list[Path] | None = options.SAMPLES
    output: Path | None = options.MODULE_OUTPUT
    target: str = options.TARGET
    trials: int = option("Number of candidates to score.", "N", default=64, min=1)
    sampler: str = option("Search algorithm: nsga2 or tpe.", "NAME", default="nsga2")
    seed: int = option("Seed of the search.", "N", default=0)
    storage: Path | None = option("Store candidates in this file, to resume an interrupted search.", "FILE")
    family: Path | None = option("Write a small, a medium and a large network to this folder, for a server.", "DIR")
    max_drop: float | None = option("Maximum drop of the score; no limit if not given.", "SHARE")
    report: Path | None = option("Write a report to this file, .html or .json.", "FILE")
    shape: list[str] | None = options.MODEL_SHAPES
    constant: list[str] | None = options.CONSTANTS
    threads: int | None = options.THREADS
    as_json: bool = options.JSON


@command_of
def command(given: _Options) -> None:
    from compiler.cli.paths import check_report, check_writable

    path = given.output if given.output is not None else Path(given.model.with_suffix(".twm").name)
    check_writable(path)
    check_report(given.report, (".html", ".json"))
    limits = parse_numbers(given.budget, "--budget")
    samples = load_archives(given.samples, "--samples")
    with Steps() as steps:
        result = compiler.search(
            given.model,
            **parse_fixed(given.model, given.shape, given.constant),
            **keywords_of(compiler.search, given, budget=limits, calibration=samples, progress=steps),
        )
        result.module.export(path)
        written = None if given.family is None else result.write_family(given.family)
    if given.report is not None:
        result.report.save(given.report)
    if given.as_json:
        variants = {} if written is None else {"family": written.to_dict()}
        print_json({"path": str(path), **result.report.to_dict(), **variants})
        return
    print_line(str(result.report))
    if written is not None:
        print_line(str(written))
    print_line(f"wrote {path}")
