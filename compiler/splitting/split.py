"""`split`: finds the best cut of a model between a client and a server, and compiles both halves.

The costs of both sides of a cut are estimated for each target, and measured on this machine if possible.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from typing_extensions import Unpack

import targets
from compiler.artifact.storage import write_json
from compiler.compression.model import canonical
from compiler.driver.compile import compile as compile_model
from compiler.driver.compile import find_target, model_name
from compiler.errors import AccuracyError, NothingGainedError, OptionError, TensorwrightError
from compiler.frontends.imported_model import ImportedModel
from compiler.frontends.source import ImportOptions
from compiler.inspection.cost_estimate import estimate_costs
from compiler.profiling.timing import interleaved_seconds
from compiler.runtime import Module
from compiler.runtime.random_inputs import random_inputs
from compiler.splitting.cuts import KINDS, Cut, Wire, calibrated, find_cuts, halves
from compiler.support.interrupts import interruptible
from compiler.support.options import ImportArguments, takes_imports
from compiler.support.progress_bar import automatic, shows_progress, silent
from compiler.support.roofline import Roofline

Array = np.ndarray


@dataclass(frozen=True)
class Choice:
    """A cut with a wire type.

    Attributes:
        nbytes: bytes on the wire.
        client, transfer, server: seconds of each part.
    """

    position: int
    after: str
    wire: str
    nbytes: int
    client: float
    transfer: float
    server: float

    @property
    def seconds(self) -> float:
        """Total seconds."""
        return self.client + self.transfer + self.server

    def __str__(self) -> str:
        return (
            f"{self.seconds * 1e3:9.2f} ms = client {self.client * 1e3:.2f} + wire {self.transfer * 1e3:.2f} + server"
            f" {self.server * 1e3:.2f}  {self.nbytes / 1e3:9.1f} kB {self.wire:8} after {self.after}"
        )


@dataclass(frozen=True)
class Error:
    """Difference of outputs from the whole model's.

    Attributes:
        largest: the largest absolute difference.
        relative: the largest difference relative to the largest output.
        cosine: the lowest cosine similarity of any output of any sample.
    """

    largest: float
    relative: float
    cosine: float

    @classmethod
    def of(cls, got: Sequence[Mapping[str, Array]], expected: Sequence[Mapping[str, Array]]) -> Error:
        """Error of all outputs of all samples."""
        largest, scale, cosine = 0.0, 0.0, 1.0
        for one, other in zip(got, expected, strict=True):
            for name, wanted in other.items():
                a, b = (np.asarray(array, np.float64).ravel() for array in (one[name], wanted))
                if not b.size:
                    continue
                largest, scale = max(largest, float(np.abs(a - b).max())), max(scale, float(np.abs(b).max()))
                norms = float(np.linalg.norm(a) * np.linalg.norm(b))
                cosine = min(cosine, float(a @ b) / norms if norms else float(np.array_equal(a, b)))
        return cls(largest, largest / scale if scale else largest, cosine)


@dataclass(frozen=True)
class SplitReport:
    """The cuts considered, and the choice.

    Attributes:
        crossing: tensors on the wire: name, shape, element type.
        client_alone: seconds of the whole model on the client.
        measured, errors: the finalists with each wire type.
        estimated: the best cuts by estimated times.
        random_inputs: whether scales and errors are for random inputs, since none were given.
    """

    model: str
    client_target: str
    server_target: str
    bandwidth: float
    latency: float
    chosen: Choice
    crossing: tuple[tuple[str, list[int | str], str], ...]
    error: Error
    max_drop: float
    client_alone: float
    measured: tuple[Choice, ...]
    errors: tuple[Error, ...]
    estimated: tuple[Choice, ...]
    random_inputs: bool

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report as JSON. Raises StorageError."""
        write_json(path, asdict(self))

    def __str__(self) -> str:
        tensors = ", ".join(f"{name} {dtype}{shape}" for name, shape, dtype in self.crossing)
        lines = [
            f"{self.model}: {self.client_target} -> {self.server_target}, {self.bandwidth / 1e6:g} Mbit/s",
            f"cut after {self.chosen.after!r}; on the wire: {tensors}",
            f"{self.chosen.seconds * 1e3:.2f} ms; the client alone takes {self.client_alone * 1e3:.2f} ms",
            f"difference from the whole model: {self.error.largest:.3g} ({self.error.relative:.3g} of the largest"
            f" output), cosine {self.error.cosine:.6f}" + (" (on random inputs)" if self.random_inputs else ""),
            "measured:",
            *(f"  {each}  cosine {error.cosine:.6f}" for each, error in zip(self.measured, self.errors, strict=True)),
        ]
        return "\n".join(lines)


Arrays = Mapping[str, Array]
_FINALISTS = 3
_RANDOM_SAMPLES = 4


@dataclass(frozen=True)
class SplitResult:
    """Both halves of a model.

    Attributes:
        client: compiled for the client's target; its outputs are sent.
        server: receives them, and returns the model's outputs.
    """

    client: Module
    server: Module
    report: SplitReport


@dataclass(frozen=True, kw_only=True)
class Network:
    """The connection between both halves.

    Attributes:
        bandwidth: bits per second.
        latency: round-trip time in seconds.
    """

    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        """Raise OptionError for an invalid bandwidth or latency."""
        if not self.bandwidth > 0 or not self.latency >= 0:
            raise OptionError(f"bandwidth {self.bandwidth} bit/s, latency {self.latency} s", "give numbers above 0")

    def seconds(self, nbytes: int) -> float:
        """Seconds to send a number of bytes and receive an answer."""
        return self.latency + 8 * nbytes / self.bandwidth


@dataclass(frozen=True)
class Measured:
    """A cut with a wire type, its times, scales and error."""

    choice: Choice
    cut: Cut
    wires: list[Wire]
    error: Error


@interruptible
@shows_progress
@takes_imports
def split(
    source: object,
    *,
    bandwidth: float,
    latency: float = 0.0,
    client_target: str | targets.Target = "host",
    server_target: str | targets.Target = "host",
    wires: Sequence[str] = KINDS,
    at: str | None = None,
    calibration: Sequence[Arrays] | None = None,
    max_drop: float = 0.01,
    size: int = 1,
    threads: int | None = None,
    progress: Callable[[str], None] | None = automatic,
    **imports: Unpack[ImportArguments],
) -> SplitResult:
    """Cut a model such that the total time of client, wire and server is minimal.

    All cuts are ranked by estimated times; the halves of the best three are built and timed on this machine. For a
    target other than this machine, measured times are scaled by the ratio of the estimates.

    Args:
        source, and its import options (shapes, constants, ...): as in `tensorwright.compile`.
        bandwidth, latency: of the network, in bits per second and seconds per round trip.
        wires: allowed wire types of float32 tensors: "float32", "float16", "int8" (one scale per tensor).
        at: the node after which to cut; None: the best one.
        calibration: representative inputs, for int8's scales and for the error; None: random inputs, which the report
            mentions.
        max_drop: the largest drop of cosine similarity with the whole model that the wire type may cause.
        size: size of all symbolic dimensions, for times and bytes.

    Raises:
        NothingGainedError: the client without a server is faster than any cut.
        AccuracyError: no wire type holds `max_drop`.
        OptionError: the model cannot be cut, or an option is invalid.
    """
    unknown = sorted(set(wires) - set(KINDS))
    if unknown or not wires:
        raise OptionError(f"unknown wire type {unknown}", f"known: {', '.join(KINDS)}")
    sides = find_target(client_target, threads), find_target(server_target, threads)
    model = ImportOptions.of(imports).load(source)
    splitter = _Splitter(model, model_name(source), sides, Network(bandwidth=bandwidth, latency=latency))
    splitter.report = progress if progress is not None else silent
    splitter.threads, splitter.size = threads, size
    splitter.use(calibration)
    return splitter.result([kind for kind in KINDS if kind in wires], at, max_drop)


class _Splitter:
    """Splits one model."""

    def __init__(
        self, model: ImportedModel, name: str, sides: tuple[targets.Target, targets.Target], network: Network
    ) -> None:
        self.host = find_target("host")
        self.model, self.name = canonical(model, self.host), name
        self.client, self.server = sides
        self.network = network
        self.report: Callable[[str], None] = silent
        self.threads: int | None = None
        self.size = 1
        self.samples: list[dict[str, Array]] = []
        self.timed: dict[str, Array] = {}
        self.random = False

    def use(self, calibration: Sequence[Arrays] | None) -> None:
        """Use the caller's samples, or random ones."""
        self.random = calibration is None
        sizes = {each: self.size for spec in self.model.inputs for each in spec.shape if isinstance(each, str)}
        made_up = [
            random_inputs(self.model.inputs, sizes=sizes, indices=self.model.indices, seed=seed)
            for seed in range(_RANDOM_SAMPLES)
        ]
        if calibration is None:
            self.samples = made_up
        else:
            self.samples = [{name: np.asarray(array) for name, array in each.items()} for each in calibration]
        if not self.samples:
            raise OptionError("calibration= holds no samples", "give some representative inputs of the model")
        # Bytes are counted for these sizes, so times must be, too; samples may have more rows.
        self.timed = made_up[0] if sizes else self.samples[0]

    def result(self, kinds: Sequence[str], at: str | None, max_drop: float) -> SplitResult:
        """Choose, build, and report. Raises as `split`."""
        cuts = [cut for cut in find_cuts(self.model) if self._computes_after(cut)]
        if at is not None:
            named = [cut for cut in cuts if cut.after == at]
            if not named:
                positions = ", ".join(dict.fromkeys(cut.after for cut in cuts))
                raise OptionError(f"the model cannot be cut after {at!r}", f"it can after {positions}")
            cuts = named[-1:]
        self.report("estimate")
        nodes = node_positions(self.model)
        costs = {
            side.name: estimated_costs(self.model, side, cuts, nodes, self.size)
            for side in {each.name: each for each in (self.client, self.server, self.host)}.values()
        }
        client, server, here = (costs[side.name] for side in (self.client, self.server, self.host))
        self.report("measure the whole model")
        whole = self._compile(self.model)
        expected = [whole.run(sample) for sample in self.samples]
        seconds = _seconds(whole, self.timed)
        alone = seconds * _ratio(client.whole, here.whole)
        # Rooflines estimate lower bounds; the whole model shows how much longer this machine takes.
        slower = _ratio(seconds, here.whole)
        estimated = sorted(
            (
                self._choice(cut, kind, slower * client.before[cut.position], slower * server.after(cut))
                for cut in cuts
                for kind in kinds
            ),
            key=lambda choice: choice.seconds,
        )
        by_position = {cut.position: cut for cut in cuts}
        finalists = _different(estimated, by_position)
        measured: list[Measured] = []
        for position in finalists:
            cut = by_position[position]
            self.report(f"measure the cut after {cut.after}")
            measured += self._measured(cut, kinds, (client, server, here), expected)
        best = best_of(measured, max_drop, alone if at is None else None)
        return self._built(best, measured, estimated, alone, max_drop)

    def _computes_after(self, cut: Cut) -> bool:
        bindings = [binding for block in self.model.mod["main"].body.blocks for binding in block.bindings]
        return any(str(binding.var.name) in self.model.nodes for binding in bindings[cut.position :])

    def _choice(self, cut: Cut, kind: str, client: float, server: float) -> Choice:
        nbytes = cut.nbytes(Wire(kind), self.size)
        return Choice(cut.position, cut.after, kind, nbytes, client, self.network.seconds(nbytes), server)

    def _compile(self, half: ImportedModel, target: targets.Target | None = None, **options: Any) -> Module:
        return compile_model(half, target or self.host, threads=self.threads, progress=None, **options)

    def _measured(
        self, cut: Cut, kinds: Sequence[str], sides: tuple[SideCosts, SideCosts, SideCosts], expected: Sequence[Arrays]
    ) -> list[Measured]:
        """The cut with each wire type: measured times, calibrated scales, and the resulting error."""
        client, server, here = sides
        floats = [Wire() for _ in cut.crossing]
        front, back = (self._compile(half) for half in halves(self.model, cut, floats))
        names = [each.name for each in front.inputs]
        sent = [front.run({name: sample[name] for name in names}) for sample in self.samples]
        timed = {name: self.timed[name] for name in names}
        client_seconds = _seconds(front, timed)
        client_seconds *= _ratio(client.before[cut.position], here.before[cut.position])
        server_seconds = _seconds(back, front.run(timed)) * _ratio(server.after(cut), here.after(cut))
        measured = []
        for kind in kinds:
            wires = [calibrated(kind, [np.asarray(each[tensor.name]) for each in sent]) for tensor in cut.crossing]
            received = [
                {tensor.name: wire.through(each[tensor.name]) for tensor, wire in zip(cut.crossing, wires, strict=True)}
                for each in sent
            ]
            error = Error.of([back.run(each) for each in received], expected)
            measured.append(Measured(self._choice(cut, kind, client_seconds, server_seconds), cut, wires, error))
        return measured

    def _built(
        self, best: Measured, measured: Sequence[Measured], estimated: Sequence[Choice], alone: float, max_drop: float
    ) -> SplitResult:
        choice, cut, wires, error = best.choice, best.cut, best.wires, best.error
        self.report(f"build the halves of the cut after {cut.after}")
        front, back = halves(self.model, cut, wires)
        sample = {spec.name: self.samples[0][spec.name] for spec in front.inputs}
        client = self._compile(front, self.client, reference_inputs=sample)
        sent = client.artifact.reference_outputs
        if not sent:
            raise TensorwrightError("the client's half gave no reference outputs to build the server's half with")
        server = self._compile(back, self.server, reference_inputs=dict(sent))
        report = SplitReport(
            model=self.name,
            client_target=self.client.name,
            server_target=self.server.name,
            bandwidth=self.network.bandwidth,
            latency=self.network.latency,
            chosen=choice,
            crossing=tuple(
                (each.name, list(each.shape), wire.kind if each.dtype == "float32" else each.dtype)
                for each, wire in zip(cut.crossing, wires, strict=True)
            ),
            error=error,
            max_drop=max_drop,
            client_alone=alone,
            measured=tuple(each.choice for each in measured),
            errors=tuple(each.error for each in measured),
            estimated=tuple(estimated[:20]),
            random_inputs=self.random,
        )
        return SplitResult(client, server, report)


def best_of(measured: Sequence[Measured], max_drop: float, alone: float | None) -> Measured:
    """The fastest whose wire type is within the limit.

    Args:
        alone: seconds of the client without a server; None: do not compare.

    Raises:
        AccuracyError, NothingGainedError: as `split`.
    """
    holding = [each for each in measured if 1.0 - each.error.cosine <= max_drop]
    if not holding:
        listed = "; ".join(
            f"{each.choice.wire} after {each.choice.after}: {each.error.cosine:.6f}" for each in measured
        )
        hint = "allow float16 or float32"
        raise AccuracyError(f"no wire type holds the limit max_drop={max_drop}: {listed}", hint)
    best = min(holding, key=lambda each: each.choice.seconds)
    if alone is not None and alone <= best.choice.seconds:
        raise NothingGainedError(
            f"the client alone takes {alone * 1e3:.2f} ms; the best cut, after {best.choice.after}, takes"
            f" {best.choice.seconds * 1e3:.2f} ms",
            "run the whole model on the client, or name a cut (at=)",
        )
    return best


def _different(estimated: Sequence[Choice], cuts: Mapping[int, Cut]) -> list[int]:
    """The positions of the best cuts; among those that send equally many bytes only the best."""
    chosen: dict[int, int] = {}
    for choice in estimated:
        chosen.setdefault(cuts[choice.position].nbytes(Wire()), choice.position)
    return list(chosen.values())[:_FINALISTS]


def _ratio(target: float, here: float) -> float:
    """A target's estimated time as a multiple of this machine's; 1 if both are zero."""
    return target / here if here else 1.0


def _seconds(module: Module, inputs: Arrays) -> float:
    (seconds,) = interleaved_seconds([lambda: module.run(inputs)], threads=module.threads)
    return seconds


@dataclass(frozen=True)
class SideCosts:
    """Estimated seconds of a target for the bindings of `main` before each position.

    Attributes:
        before: seconds by position of a cut.
        whole: seconds of the whole model.
    """

    before: dict[int, float]
    whole: float

    def after(self, cut: Cut) -> float:
        """Cost of the part after a cut."""
        return self.whole - self.before[cut.position]


def estimated_costs(
    model: ImportedModel, target: targets.Target, cuts: Sequence[Cut], positions: dict[str, int], size: int
) -> SideCosts:
    """Lower bounds of kernel times (roofline), by the position of the node that accounts for most of a kernel's work.

    Args:
        positions: the position after which a node is computed.
        size: size of all symbolic dimensions.
    """
    roofline = Roofline.of(target.machine, measured=False)
    symbols = {each: size for spec in model.inputs for each in spec.shape if isinstance(each, str)}
    by_position: dict[int, float] = defaultdict(float)
    for cost in estimate_costs(model, target, roofline, symbols):
        position = next((positions[node] for node in cost.nodes if node in positions), 0)
        by_position[position] += cost.seconds
    cumulative = {
        cut.position: sum(seconds for position, seconds in by_position.items() if position <= cut.position)
        for cut in cuts
    }
    return SideCosts(cumulative, sum(by_position.values()))


def node_positions(model: ImportedModel) -> dict[str, int]:
    """The number of bindings up to and including the one that computes a node."""
    bindings = [binding for block in model.mod["main"].body.blocks for binding in block.bindings]
    positions: dict[str, int] = {}
    for position, binding in enumerate(bindings):
        for node in model.nodes.get(str(binding.var.name), ()):
            positions[node.name] = position + 1
    return positions


# Parses bandwidths and times.

_RATE = re.compile(r"([0-9]*\.?[0-9]+) *([kKMG]?)(bit|b|bps|B|byte)(?:/s|ps)?")
_TIME = re.compile(r"([0-9]*\.?[0-9]+) *(s|ms|us)")
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def bits_per_second(text: str) -> float:
    """A bandwidth: "10Mbit", "1 Gbit/s", "2MB" (bytes). Raises OptionError for another text."""
    match = _RATE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise OptionError(f"{text!r} is not a bandwidth", "write it as 10Mbit, 500kbit, 1Gbit, or in bytes as 2MB")
    return float(match[1]) * _PREFIX[match[2]] * (8 if match[3] in ("B", "byte") else 1)


def seconds(text: str) -> float:
    """A time: "20ms", "0.1s". Raises OptionError for another text."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise OptionError(f"{text!r} is not a time", "write it as 20ms or 0.1s")
    return float(match[1]) * _SECONDS[match[2]]
