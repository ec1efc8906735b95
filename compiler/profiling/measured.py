"""Contents of a profile: times of kernels and single calls, and the latency that they are parts of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from compiler.profiling.attribution import layer_label
from compiler.profiling.difference import FORMAT_VERSION
from compiler.profiling.save import save_profile
from compiler.profiling.tensor_fields import named_types
from compiler.profiling.timing import Latency
from compiler.reports.formatting import format_percent, format_seconds, plural
from compiler.support.notebook import table_html
from compiler.support.roofline import Roofline

_SHOWN = 20  # kernels shown in a notebook


@dataclass(frozen=True)
class CallTime:
    """One call of one run.

    Attributes:
        start, duration: in seconds from the beginning of the run; duration includes nested calls.
        depth: 0 in `main`, 1 in a function it calls, and so on.
        shapes: shapes of its tensor arguments, outputs included.
        nbytes: bytes of these tensors, a lower bound of its memory traffic.
        operations: arithmetic operations, or None if unknown.
        nodes: the model's nodes that it computes, the main one first; empty if unknown.
        layer: its index among the layers of the profile.
        reads: indices of the earlier calls whose results it reads.
        live_bytes: bytes of tensors alive while it runs, except parameters and inputs.
    """

    name: str
    kind: str
    start: float
    duration: float
    depth: int
    shapes: tuple[str, ...]
    nbytes: int
    operations: int | None
    nodes: tuple[str, ...] = ()
    layer: int = 0
    reads: tuple[int, ...] = ()
    live_bytes: int = 0

    @property
    def label(self) -> str:
        """The main node of the model, or the kernel's name if no node is known."""
        return self.nodes[0] if self.nodes else self.name


@dataclass(frozen=True)
class ThreadTime:
    """Work of one thread in a parallel loop of a kernel, in one run.

    Attributes:
        thread: 0 for the thread that runs the module.
        call: the kernel's index among the calls.
        start, duration: in seconds from the beginning of the run.
        parts: number of the loop's parts that it ran.
    """

    thread: int
    call: int
    start: float
    duration: float
    parts: int


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel in a run, or only those of one call site.

    Attributes:
        operators: operators of the model, as far as the kernel's name shows.
        kind: kind of work, one of `attribution.KINDS`.
        rule: the schedule rule that made it; None for the runtime's own functions.
        calls: number of calls per run.
        seconds: time per run of all calls together, without nested calls: the median over runs.
        share: fraction of the latency of a run (of the sum of all kernels, if noise makes that larger).
        operations: arithmetic operations of all calls in a run, or None if unknown.
        nbytes: bytes of the tensor arguments of all calls in a run.
        nodes: the model's nodes that the calls compute; for one call site starting with the main node.
        tasks: tasks of its parallel loops, equal ones once; empty: one thread computes it. None if unknown, or if they
            differ between calls.
        balance: the fraction of time in which all threads work, if tasks take equally long; None if unknown.
        serial: why one thread computes it, if that is known before it runs.
        config: config of its schedule, by the names of the rule's parameters.
    """

    name: str
    operators: tuple[str, ...]
    kind: str
    rule: str | None
    calls: int
    seconds: float
    share: float
    operations: int | None
    nbytes: int
    nodes: tuple[str, ...] = ()
    tasks: tuple[int, ...] | None = None
    balance: float | None = None
    serial: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The main node of the model and the number of others, or the kernel's name if no node is known."""
        return layer_label(self.nodes, self.name)

    @property
    def rate(self) -> float | None:
        """Operations per second, or None if unknown."""
        return self.operations / self.seconds if self.operations and self.seconds > 0 else None

    @property
    def bandwidth(self) -> float | None:
        """Bytes of its tensors per second."""
        return self.nbytes / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class Profile:
    """Times of a model's kernels and of its runs.

    Attributes:
        model, target, machine: names, for reports.
        threads: number of threads per run.
        inputs: the profiled shapes, as text by input name.
        latency: latency of runs without the instrument; all shares refer to its median.
        samples: times of these runs in seconds, in order.
        watched: latency of the runs with the instrument, including its overhead.
        crossing: seconds of overhead per call of the instrument; subtracted everywhere here.
        kernels: kernels and runtime functions, slowest first.
        layers: the same by call site, so that calls of one kernel for several nodes of the model are separate.
        calls: the calls of one typical run, in order.
        roofline: limits of the processor with these threads; None for other devices.
        planned_bytes: bytes in the memory plan for tensors between kernels; None if it depends on sizes.
        thread_times: work of each thread in the parallel loops of that run.
    """

    model: str
    target: str
    machine: str
    threads: int
    inputs: dict[str, str]
    latency: Latency
    samples: tuple[float, ...]
    watched: Latency
    crossing: float
    kernels: tuple[KernelTime, ...]
    calls: tuple[CallTime, ...]
    layers: tuple[KernelTime, ...] = ()
    roofline: Roofline | None = None
    planned_bytes: int | None = None
    thread_times: tuple[ThreadTime, ...] = ()

    def __repr__(self) -> str:
        slowest = ", ".join(f"{each.label} {format_seconds(each.seconds)}" for each in self.layers[:3])
        return (
            f"<Profile {self.model!r} on {self.target}, {plural(self.threads, 'thread')}: "
            f"p50 {format_seconds(self.latency.p50)} in {len(self.kernels)} kernels and calls; slowest: {slowest}>"
        )

    def _repr_html_(self) -> str:
        in_layers = sum(max(0.0, each.seconds) for each in self.layers)
        total = max(self.latency.p50, in_layers)

        def share(seconds: float) -> str:
            return format_percent(max(0.0, seconds) / total) if total > 0 else "-"

        rows: list[tuple[object, ...]] = [
            (each.label, each.name, each.kind, each.calls, format_seconds(each.seconds), share(each.seconds))
            for each in self.layers[:_SHOWN]
        ]
        where = f"{self.model} on {self.target}, {plural(self.threads, 'thread')}"
        hidden = self.layers[_SHOWN:]
        if hidden:
            rest = sum(max(0.0, each.seconds) for each in hidden)
            calls = sum(each.calls for each in hidden)
            rows.append((f"{len(hidden)} more", "", "", calls, format_seconds(rest), share(rest)))
        outside = total - in_layers
        rows.append(("outside all calls", "", "", "", format_seconds(outside), share(outside)))
        rows.append(("whole run", "", "", "", format_seconds(total), share(total)))
        title = f"{where}: p50 {format_seconds(self.latency.p50)}"
        return table_html(title, ("layer", "kernel", "kind", "calls", "time", "share"), rows)

    @property
    def tracked(self) -> float:
        """Seconds of a run in kernels and runtime functions."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def untracked(self) -> float:
        """Seconds of a run outside all calls: the virtual machine's own work.

        The difference of two measurements; slightly negative if it is within their noise.
        """
        return self.latency.p50 - self.tracked

    def untracked_text(self) -> str:
        """`untracked` as text."""
        if self.untracked >= 0:
            return f"{format_seconds(self.untracked)} outside all calls"
        excess = format_percent(-self.untracked / self.latency.p50) if self.latency.p50 > 0 else "some"
        return f"none: watched calls came to {excess} more than a run takes"

    def seconds_by_kind(self) -> dict[str, float]:
        """Seconds per run by kind of work, in descending order."""
        totals: dict[str, float] = {}
        for kernel in self.kernels:
            totals[kernel.kind] = totals.get(kernel.kind, 0.0) + kernel.seconds
        return dict(sorted(totals.items(), key=lambda item: -item[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; times in seconds, sizes in bytes."""
        kernels, layers = (
            [{**asdict(each), "operations_per_second": each.rate} for each in group]
            for group in (self.kernels, self.layers)
        )
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "target": self.target,
            "machine": self.machine,
            "threads": self.threads,
            "inputs": named_types(self.inputs),
            "latency": self.latency.to_dict(),
            "watched_latency": self.watched.to_dict(),
            "instrument_seconds_per_crossing": self.crossing,
            "untracked_seconds": self.untracked,
            "seconds_by_kind": self.seconds_by_kind(),
            "kernels": kernels,
            "layers": layers,
        }

    def save(self, folder: str | Path, beside: Profile | Mapping[str, Any] | None = None) -> dict[str, Path]:
        """Write the profile to a folder, created if necessary: `profile.json`, `trace.json` and `profile.html`. Raises
        StorageError if a file cannot be written.

        Args:
            beside: another profile of the model, or a dictionary from its `to_dict`, for a layer-by-layer comparison.

        Returns:
            The paths by "profile", "trace" and "page".
        """
        return save_profile(self, Path(folder), beside)
