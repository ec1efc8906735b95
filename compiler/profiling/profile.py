"""`profile`: time per kernel of a compiled module, on real or random inputs.

Calls are mapped to the model's nodes by the manifest's list of calls: calls of one kernel are distinguished by order.

Also finds the dataflow of a recorded run: which earlier results each call reads, and the bytes alive at that time.
Kernels write their last arguments. A tensor is an address between two writes to it: tensors that share memory in the
plan are distinguished by time, and views and tensors updated in place count as the tensors they alias.
"""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from compiler.artifact.manifest import CallList, KernelProvenance, Manifest
from compiler.errors import OptionError
from compiler.profiling.attribution import RUNTIME, kind_of, operators_of
from compiler.profiling.instrument import DYNAMIC_CALL, Call, CallTimes, Recording, call_times, record
from compiler.profiling.measured import CallTime, KernelTime, Profile, ThreadTime
from compiler.profiling.timing import Latency, median
from compiler.profiling.workload import Workload, prepare
from compiler.runtime.thread_pool import Work, WorkTrace
from compiler.support.balance import balance, elements_read, task_counts
from compiler.support.formula import evaluate
from compiler.support.interrupts import interruptible
from compiler.support.roofline import Roofline
from schedules.machine import Machine
from targets import cpuinfo
from targets.processors import usable_cores

_MIN_RUNS = 5
_WARM_UP_SECONDS = 0.2


@interruptible
def profile(
    source: object,
    inputs: Mapping[str, object] | Sequence[object] | None = None,
    *,
    runs: int | None = None,
    seconds: float = 3.0,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Profile:
    """Measure how a module's time is distributed over its kernels.

    Runs with the instrument alternate with runs without it, so that both see the same state of the machine.

    Args:
        source: a `Module`, or the path of a `.twm` file.
        inputs: by name or in order, as for `Module.run`; None: random inputs.
        runs: number of runs with the instrument; None: all that fit in `seconds`, at least 5.
        threads: number of threads per run; None: the module's own setting.
        sizes: sizes of symbolic dimensions by name, for random inputs; 1 for missing ones.

    Raises:
        UserError: the file or an input is invalid.
        InternalError: TVM failed, or the module's calls differ between runs.
    """
    if runs is not None and runs < 1:
        raise OptionError(f"runs={runs}: at least one run is needed")
    workload = prepare(source, inputs, threads=threads, sizes=sizes)
    return _summarize(workload, workload.on_its_threads(lambda: _measure(workload, runs, seconds)))


@dataclass(frozen=True)
class _Measured:
    """Seconds of runs without the instrument (`samples`) and with it, and the recording of the latter.

    Attributes:
        works: for each run with the instrument, the work of its threads.
    """

    samples: list[float]
    watched: list[float]
    recording: Recording
    works: list[list[Work]]

    @property
    def typical(self) -> int:
        """The run with the instrument whose time is nearest to the median."""
        order: NDArray[np.int64] = np.argsort(self.watched, kind="stable")
        return int(order[len(order) // 2])


def _measure(workload: Workload, runs: int | None, seconds: float) -> _Measured:
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    workload.run()
    while time.perf_counter() < deadline:
        workload.run()
    samples: list[float] = []
    watched: list[float] = []
    works: list[list[Work]] = []
    trace = WorkTrace()
    deadline = time.perf_counter() + seconds

    def watched_run() -> None:
        works.append(trace.during(lambda: watched.append(_timed(workload.run))))

    def plain_run() -> None:
        samples.append(_timed(workload.run))

    def keep_going(done: int) -> bool:
        if runs is not None:
            return done < runs
        return done < _MIN_RUNS or time.perf_counter() < deadline

    collecting = gc.isenabled()
    gc.disable()  # a collection would distort the call that is running
    try:
        recording = record(workload.set_instrument, watched_run, keep_going, plain_run)
    finally:
        if collecting:
            gc.enable()
    return _Measured(samples, watched[1:], recording, works[1:])


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _summarize(workload: Workload, measured: _Measured) -> Profile:
    recording, latency = measured.recording, Latency.of(measured.samples)
    times = call_times(recording, latency.p50)
    manifest = workload.module.manifest
    provenance = {entry.kernel: entry for entry in manifest.kernels}
    named = named_calls(recording.calls, manifest.calls)
    calls = [replace(call, name=name.kernel) for call, name in zip(recording.calls, named, strict=True)]
    recording = replace(recording, calls=calls)
    operations = [_operations(call, provenance.get(call.name)) for call in recording.calls]

    def kernels(sites: Sequence[tuple[str, int]]) -> dict[tuple[str, int], KernelTime]:
        run = _Calls(calls, times, operations, named)
        return _kernels(run, sites, latency.p50, provenance, workload.module.threads)

    layers = kernels([name.site for name in named])
    positions = {index: position for position, index in enumerate(layers)}
    plan = manifest.memory_plan
    return Profile(
        model=manifest.model_name,
        target=manifest.target.name,
        machine=f"{cpuinfo.model_name()} ({usable_cores()} cores)",
        threads=workload.module.threads,
        inputs=workload.shapes(),
        latency=latency,
        samples=tuple(measured.samples),
        watched=Latency.of(measured.watched),
        crossing=times.crossing,
        kernels=tuple(kernels([(call.name, -1) for call in calls]).values()),
        layers=tuple(layers.values()),
        calls=_calls(recording, times, operations, measured.typical, named, provenance, positions),
        thread_times=_thread_times(measured, times),
        roofline=_limits(manifest, workload.module.threads),
        planned_bytes=plan.peak_bytes if plan is not None and plan.dynamic_bytes == "0" else None,
    )


def _limits(manifest: Manifest, threads: int) -> Roofline | None:
    """Limits of the processor described by the manifest, at this machine's clock and bandwidth, with a number of
    threads;
    None if kernels run elsewhere, or if the manifest describes no processor."""
    if manifest.target.device is not None:
        return None
    try:
        described = Machine.model_validate(manifest.target.details.get("machine"))
    except ValidationError:
        return None
    return Roofline.of(described.model_copy(update={"cores": threads}), measured=True)


def _operations(call: Call, entry: Any) -> int | None:
    """The call's operations, from the manifest's formula and the sizes in its arguments."""
    if entry is None or entry.operations is None:
        return None
    try:
        return evaluate(entry.operations, _sizes(call, entry))
    except ValueError:
        return None  # a size is not visible in the arguments


def _sizes(call: Call, entry: KernelProvenance) -> dict[str, int]:
    """The sizes of a kernel that are visible in a call's arguments."""
    sizes: dict[str, int] = {}
    for name, (argument, axis) in entry.symbols.items():
        tensor = call.arguments.get(argument)
        if axis < 0:
            scalar = call.scalars.get(argument)
            if scalar is not None:
                sizes[name] = scalar
        elif tensor is not None and axis < len(tensor.shape):
            sizes[name] = tensor.shape[axis]
    return sizes


def _tasks(calls: Sequence[Call], entry: KernelProvenance | None) -> tuple[int, ...] | None:
    """The tasks of a kernel's parallel loops, if they are the same for all its calls."""
    if entry is None or entry.tasks is None:
        return None
    counts = {task_counts(entry.tasks, _sizes(call, entry)) for call in calls}
    return counts.pop() if len(counts) == 1 else None


@dataclass(frozen=True)
class _Calls:
    """The calls of a run in order, with times, operations and nodes of each."""

    calls: Sequence[Call]
    times: CallTimes
    operations: Sequence[int | None]
    named: Sequence[NamedCall]


def _kernels(
    run: _Calls,
    sites: Sequence[tuple[str, int]],
    latency: float,
    provenance: Mapping[str, KernelProvenance],
    threads: int,
) -> dict[tuple[str, int], KernelTime]:
    """The calls grouped by call site, slowest first."""
    kinds = _kinds(run.calls)
    groups: dict[tuple[str, int], list[int]] = {}
    for index, site in enumerate(sites):
        groups.setdefault(site, []).append(index)
    seconds_of = {key: median(run.times.own[:, members].sum(axis=1).tolist()) for key, members in groups.items()}
    # The two are measured in different runs: noise must not make shares exceed the whole.
    total = max(latency, sum(seconds_of.values()), 1e-9)
    kernels = {}
    for key, members in sorted(groups.items(), key=lambda item: -seconds_of[item[0]]):
        name, seconds = run.calls[members[0]].name, seconds_of[key]
        known = [run.operations[index] for index in members]
        entry = provenance.get(name)
        tasks = _tasks([run.calls[index] for index in members], entry)
        kernels[key] = KernelTime(
            name=name,
            operators=operators_of(name),
            kind=kinds[members[0]],
            rule=None if entry is None else entry.rule,
            calls=len(members),
            seconds=seconds,
            share=seconds / total,
            operations=None if None in known else sum(count for count in known if count is not None),
            nbytes=sum(_nbytes(run.calls[index], kinds[index], entry) for index in members),
            nodes=tuple(dict.fromkeys(node for index in members for node in run.named[index].nodes)),
            tasks=tasks,
            balance=None if tasks is None else balance(tasks, threads),
            serial=None if entry is None else entry.serial,
            config={} if entry is None else entry.config,
        )
    return kernels


def _kinds(calls: Sequence[Call]) -> list[str]:
    """The kind of each call; a function that calls kernels (a branch, a loop body) does no work itself."""
    callers = {calls[call.parent].name for call in calls if call.parent is not None}
    return [RUNTIME if call.name in callers else kind_of(call.name) for call in calls]


def _nbytes(call: Call, kind: str, entry: KernelProvenance | None) -> int:
    if kind == RUNTIME:
        return 0  # the runtime's functions do not read the elements of tensors
    shapes = {position: tensor.shape for position, tensor in call.arguments.items()}
    gathered = frozenset(entry.gathered if entry is not None else ())
    return sum(
        tensor.nbytes * elements_read(shapes, gathered, position) // max(math.prod(tensor.shape), 1)
        for position, tensor in call.arguments.items()
    )


def _outputs(calls: Sequence[Call], kinds: Sequence[str], provenance: Mapping[str, KernelProvenance]) -> list[int]:
    """The number of tensors that each call writes."""
    written = {name: entry.outputs for name, entry in provenance.items()}
    return [0 if kind == RUNTIME else written.get(call.name, 1) for call, kind in zip(calls, kinds, strict=True)]


def _calls(
    recording: Recording,
    times: CallTimes,
    operations: Sequence[int | None],
    typical: int,
    named: Sequence[NamedCall],
    provenance: Mapping[str, KernelProvenance],
    positions: Mapping[tuple[str, int], int],
) -> tuple[CallTime, ...]:
    """The calls of the typical run."""
    kinds = _kinds(recording.calls)
    flow = dataflow(recording.calls, _outputs(recording.calls, kinds, provenance))
    return tuple(
        CallTime(
            name=call.name,
            kind=kinds[index],
            start=float(times.start[typical, index]),
            duration=float(times.duration[typical, index]),
            depth=call.depth,
            shapes=tuple(f"{tensor.dtype}{list(tensor.shape)}" for tensor in call.arguments.values()),
            nbytes=_nbytes(call, kinds[index], provenance.get(call.name)),
            operations=operations[index],
            nodes=named[index].nodes,
            layer=positions[named[index].site],
            reads=flow.reads[index],
            live_bytes=flow.live[index],
        )
        for index, call in enumerate(recording.calls)
    )


def _thread_times(measured: _Measured, times: CallTimes) -> tuple[ThreadTime, ...]:
    """Work of each thread in the typical run, relative to its calls' times without the instrument's overhead."""
    recording, run = measured.recording, measured.typical
    left, spans = recording.left[run], []
    for work in measured.works[run]:
        event = int(np.searchsorted(left, work.begin)) - 1  # the last mark before it: the start of the kernel's call
        if event < 0 or not recording.is_start[event]:
            continue
        call = int(recording.order[event])
        start, end = (min((each - left[event]) * 1e-9, times.duration[run, call]) for each in (work.begin, work.end))
        spans.append(
            ThreadTime(work.place, call, float(times.start[run, call] + start), float(end - start), work.parts)
        )
    return tuple(spans)


ENTRY = "main"
Step = Any  # element of `CallList.functions`
Names = Callable[[], frozenset[str]]


@dataclass(frozen=True)
class NamedCall:
    """A call of a run, identified in the module.

    Attributes:
        kernel: its name, also for kernels with dynamic sizes, whose calls TVM does not name.
        nodes: the model's nodes, the main one first; empty if unknown.
        site: equal for calls of one call site; without one, for calls of one kernel.
    """

    kernel: str
    nodes: tuple[str, ...]
    site: tuple[str, int]


def named_calls(calls: Sequence[Call], listed: CallList | None) -> list[NamedCall]:
    """Identify each call of a run."""
    named = [NamedCall(call.name, (), (call.name, -1)) for call in calls]
    if listed is None:
        return named
    children: dict[int | None, list[int]] = {}
    for index, call in enumerate(calls):
        children.setdefault(call.parent, []).append(index)
    frames: list[tuple[int | None, str]] = [(None, ENTRY)]
    frames += [(index, calls[index].name) for index in children if index is not None]
    for parent, function in frames:
        steps = listed.functions.get(function)
        if steps is not None:
            stream = list(_calls_of(parent, children, calls, listed))
            for index, site, (callee, *nodes) in _Matching(calls, listed, stream).matched(steps):
                names = tuple(listed.nodes[node] for node in nodes)
                named[index] = NamedCall(listed.callees[callee], names, (function, site))
    return named


def _calls_of(
    parent: int | None, children: dict[int | None, list[int]], calls: Sequence[Call], listed: CallList
) -> Iterator[int]:
    """The calls made by a function, and by functions that passes outlined from it."""
    for index in children.get(parent, ()):
        if index in children and calls[index].name not in listed.functions:
            yield from _calls_of(index, children, calls, listed)
        else:
            yield index


class _Matching:
    """Matches the calls of a function with its steps, in parallel."""

    def __init__(self, calls: Sequence[Call], listed: CallList, stream: list[int]) -> None:
        known = {*listed.callees, DYNAMIC_CALL}
        self._stream = [index for index in stream if calls[index].name in known]
        self._calls = calls
        self._callees = listed.callees
        self._at = 0
        self._site = 0

    def matched(self, steps: Sequence[Step], later: Names = frozenset) -> Iterator[tuple[int, int, list[int]]]:
        """Each call's index, the index of its step, and the step; `later` returns the names called after the steps."""
        for position, step in enumerate(steps):
            self._site += 1

            def following(position: int = position) -> frozenset[str]:
                return later() | self._names(steps[position + 1 :])

            if isinstance(step[0], list):
                yield from self._matched_branch(step, following)
                continue
            if not self._is(step):
                self._skip_unknown(following() | {self._callees[step[0]]})
            if self._is(step):
                yield self._stream[self._at], self._site, step
                self._at += 1

    def _matched_branch(self, branches: list[list[Step]], later: Names) -> Iterator[tuple[int, int, list[int]]]:
        """The calls of the branch that matches more of the next calls; none if neither matches."""
        start = self._site
        agreements = [self._agreement(branch) for branch in branches]
        if max(agreements):
            chosen = agreements.index(max(agreements))
            self._site += chosen * _count(branches[0])
            yield from self.matched(branches[chosen], later)
        self._site = start + sum(map(_count, branches))

    def _is(self, step: list[int], ahead: int = 0) -> bool:
        at = self._at + ahead
        return at < len(self._stream) and self._calls[self._stream[at]].name in (self._callees[step[0]], DYNAMIC_CALL)

    def _skip_unknown(self, known: frozenset[str]) -> None:
        """Skip calls that no remaining step makes."""
        while self._at < len(self._stream) and self._calls[self._stream[self._at]].name not in {*known, DYNAMIC_CALL}:
            self._at += 1

    def _names(self, steps: Sequence[Step]) -> frozenset[str]:
        """Names that steps call, including those in branches."""
        names: set[str] = set()
        for step in steps:
            names |= (
                self._names(step[0]) | self._names(step[1]) if isinstance(step[0], list) else {self._callees[step[0]]}
            )
        return frozenset(names)

    def _agreement(self, steps: Sequence[Step]) -> int:
        """Number of next calls that match a branch's steps, up to a nested branch."""
        plain = itertools.takewhile(lambda step: not isinstance(step[0], list), steps)
        return sum(1 for _ in itertools.takewhile(lambda each: self._is(each[1], each[0]), enumerate(plain)))


def _count(steps: Sequence[Step]) -> int:
    """The number of steps, including those in branches."""
    return sum(1 + (_count(step[0]) + _count(step[1]) if isinstance(step[0], list) else 0) for step in steps)


ALIGNMENT = 64
"""Alignment of tensor sizes in bytes, as in the manifest's memory plan."""
IN_PLACE = "_in_place"
"""Suffix of the names of kernels that update their last argument in place (`kernels_in_place.py`)."""


@dataclass(frozen=True)
class Dataflow:
    """Dataflow between the calls of a run.

    Attributes:
        reads: for each call, the earlier calls whose results it reads, without duplicates, in order.
        live: for each call, the bytes of tensors written before it ends and read in it or later, including results of
            the run but not parameters, inputs, or memory inside kernels.
    """

    reads: tuple[tuple[int, ...], ...]
    live: tuple[int, ...]


@dataclass
class _Tensor:
    writer: int
    end: int  # the last call in which it is alive
    nbytes: int


def dataflow(calls: Sequence[Call], outputs: Sequence[int]) -> Dataflow:
    """Find the dataflow between calls.

    Args:
        outputs: number of tensors that each call writes, its last ones; 0 for calls of the runtime.
    """
    current: dict[int, _Tensor] = {}  # by address
    every: list[_Tensor] = []
    reads: list[tuple[int, ...]] = []
    for index, (call, count) in enumerate(zip(calls, outputs, strict=True)):
        tensors = [each for each in call.arguments.values() if each.nbytes]
        first = max(0, len(tensors) - count)
        read = tensors if call.name.endswith(IN_PLACE) else tensors[:first]
        read_tensors = [current[each.address] for each in read if each.address in current]
        for tensor in read_tensors:
            tensor.end = index
        reads.append(tuple(sorted({tensor.writer for tensor in read_tensors})) if count else ())
        for argument in tensors[first:]:
            replaced = current.get(argument.address)
            if replaced is not None and replaced.end == index:
                replaced.end -= 1  # updated in place: replaced by the new tensor from here on
            current[argument.address] = _Tensor(index, index, -(-argument.nbytes // ALIGNMENT) * ALIGNMENT)
            every.append(current[argument.address])
    changes = [0] * (len(calls) + 1)
    for tensor in every:
        changes[tensor.writer] += tensor.nbytes
        changes[tensor.end + 1] -= tensor.nbytes
    return Dataflow(tuple(reads), tuple(accumulate(changes[:-1])))
