"""Potential gain of choices other than blocking and algorithms: prefetch distance, threads per kernel, fusion depth.

Rules fix them, so they are not part of a search. Here a net is compiled once with each value, and every kernel counts
with its best value: this bounds any search over graphs that would choose them jointly, since kernels affect each other
only through the caches. Fusion changes the set of kernels, so its depths are compared as whole nets. Timing the same
module as often as one with three other values shows the gain of the fastest of several by chance.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rich.console import Console
from rich.table import Table

import compiler
from benchmarks._tuner_graph import tasks_named
from compiler.passes.registry import get_pass
from compiler.reports.formatting import plural
from schedules.conv import direct_nest

# isort: split
import tvm

if TYPE_CHECKING:
    from benchmarks._models import Task
    from compiler.passes.context import PipelineContext

DEFAULT, NOTHING = "default", "nothing (the same module)"
NETS = ("mobilenet_v3_large", "regnet_y_400mf")
_DISTANCES = (0.0, 0.25, 4.0)  # multiples of the default prefetch distance
_DEPTHS = (1, 2, 3)  # maximum operators per kernel
Times = dict[str, float]
"""Milliseconds of a run by kernel."""


@dataclass(frozen=True)
class Variant:
    """A net with one choice changed for all of its kernels."""

    name: str
    choice: str
    module: Path
    threads: int


@dataclass(frozen=True)
class Gain:
    """Gain of one choice in one net, in milliseconds of a run spent in kernels.

    Attributes:
        default: with the rules' values.
        best: each kernel with its best value (for fusion: the net with the best depth).
        variants: with one value for all kernels.
    """

    model: str
    choice: str
    default: float
    best: float
    variants: Mapping[str, float]

    @property
    def most(self) -> float:
        """Upper bound of the gain."""
        return self.default / self.best


def add_options(parser: Any) -> None:
    """Add command-line options."""
    parser.add_argument("models", nargs="*", default=list(NETS), help="nets of the catalog or of families")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each variant")
    parser.add_argument("--turn", type=float, default=0.4, help="seconds of a turn")
    parser.add_argument("--keep", type=Path, help="a folder of modules, compiled unless they are there")
    parser.add_argument("--json", type=Path, help="write the table there")


def compare(options: Any, console: Console) -> None:
    """Compile the variants, time them alternately, print and write the results."""
    gains: list[Gain] = []
    for task in tasks_named(options.models):
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.keep or Path(scratch)
            variants = list(_variants(task, folder, options.threads))
            console.print(f"[dim]{task.name}: {plural(len(variants), 'module')}")
            gains += _gains(task.name, variants, _timed(variants, options))
        if options.json:
            _store(gains, options)
    _print(gains, console)


def _store(gains: Sequence[Gain], options: Any) -> None:
    """Rows of other nets that are in the file stay."""
    stored = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
    fresh = {each.model for each in gains}
    rows = [{**asdict(each), "most": each.most} for each in gains]
    every = [*(row for row in stored if row["model"] not in fresh), *rows]
    options.json.write_text(json.dumps({"threads": options.threads, "rows": every}, indent=1) + "\n")


def _variants(task: Task, folder: Path, threads: int) -> Iterator[Variant]:
    def made(name: str, choice: str, changed: AbstractContextManager[object], **settings: Any) -> Variant:
        path, runs_on = folder / f"{task.name} {name}.twm", settings.get("threads", threads)
        if not path.exists():
            with changed:
                given = {"threads": threads, **settings}
                compiler.compile(task.path, "host", shapes=task.shapes, records=False, **given).export(path)
        return Variant(name, choice, path, runs_on)

    default = made(DEFAULT, DEFAULT, nullcontext())
    yield default
    for number in range(len(_DISTANCES)):
        yield replace(default, name=f"again {number + 1}", choice=NOTHING)
    for factor in _DISTANCES:
        yield made(f"distance x {factor:g}", "prefetch distance", _prefetching(factor))
    yield made("one thread", "threads of a kernel", nullcontext(), threads=1)
    for depth in _DEPTHS:
        passes = {"instead-of:group-operators": _grouping(depth)}
        yield made(f"depth {depth}", "fusion depth", nullcontext(), passes=passes)


@contextmanager
def _prefetching(factor: float) -> Iterator[None]:
    """Weights of convolutions are prefetched earlier or later; not at all at 0."""
    latency = int(direct_nest._LATENCY * factor)
    none: AbstractContextManager[object] = (
        nullcontext() if factor else patch("schedules.conv.direct_nest.prefetch_share", lambda *_: None)
    )
    with patch.object(direct_nest, "_LATENCY", latency), none:
        yield


def _grouping(depth: int) -> Callable[[tvm.IRModule, PipelineContext], tvm.IRModule]:
    def group(mod: tvm.IRModule, context: PipelineContext) -> tvm.IRModule:
        with tvm.transform.PassContext(config={"relax.FuseOps.max_depth": depth}):
            return get_pass("group-operators")(mod, context)

    return group


def _timed(variants: Sequence[Variant], options: Any) -> dict[str, list[Times]]:
    """Timings of each process of each variant, interleaved."""
    times: dict[str, list[Times]] = {variant.name: [] for variant in variants}
    for number in range(options.rounds):
        for variant in variants if number % 2 == 0 else reversed(variants):
            times[variant.name].append(_turn(variant, options.turn))
    return times


def _turn(variant: Variant, seconds: float) -> Times:
    """Milliseconds of each kernel's calls, out of a process of its own: where weights lie decides on some per cent."""
    arguments = (str(variant.module), str(variant.threads), str(seconds))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks._kernel_minima", *arguments], capture_output=True, text=True, check=True
    )
    times: Times = json.loads(process.stdout)
    return times


def kernels_of(turns: Sequence[Times]) -> Times:
    """Times of the fastest turn of each kernel."""
    return {name: min(turn[name] for turn in turns) for name in turns[0]}


def best_of_each(default: Mapping[str, float], others: Sequence[Mapping[str, float]]) -> float:
    """The sum over kernels, each with the fastest of its variants; those that a variant lacks keep the default."""
    return sum(min(value, *(other.get(name, value) for other in others)) for name, value in default.items())


def _gains(model: str, variants: Sequence[Variant], times: Mapping[str, Sequence[Times]]) -> Iterator[Gain]:
    default = kernels_of(times[DEFAULT])
    total = sum(default.values())
    for choice in dict.fromkeys(variant.choice for variant in variants if variant.choice != DEFAULT):
        members = {each.name: kernels_of(times[each.name]) for each in variants if each.choice == choice}
        sums = {name: sum(kernels.values()) for name, kernels in members.items()}
        fused = choice == "fusion depth"
        best = min(total, *sums.values()) if fused else best_of_each(default, list(members.values()))
        yield Gain(model, choice, total, best, sums)


def _print(gains: Sequence[Gain], console: Console) -> None:
    table = Table(title="milliseconds in kernels; best: each kernel with the value that is best for it")
    for heading in ("model", "choice", "default", "best", "gain at most", "one value for all kernels"):
        table.add_column(heading, justify="left" if heading in ("model", "choice") else "right")
    for gain in gains:
        values = ", ".join(f"{name}: {value:.3f}" for name, value in gain.variants.items())
        numbers = (f"{gain.default:.3f}", f"{gain.best:.3f}", f"{gain.most:.3f}")
        table.add_row(gain.model, gain.choice, *numbers, values)
    console.print(table)
