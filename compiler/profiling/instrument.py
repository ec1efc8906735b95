"""Times every call of the virtual machine; the overhead of the instrument is measured in the same run and subtracted.

TVM calls an instrument before and after each call it makes. The instrument records when it was entered and left, so
that a run is a sequence of marks:

    ... left(before) | kernel | entered(after) ... left(after) | dispatch | entered(before) | ...
                      `- interval of call i -'                   `- gap before call i+1 -'

Entering the instrument costs the conversion of its arguments (0.3 to 2 us), the same before and after a call. The gap
before a call contains that cost and almost nothing else, so the median gap before calls with the same kinds of
arguments is the cost of one crossing. It is subtracted from each interval and each gap. Runs without the instrument, in
between the others, determine the total: the costs are scaled to match it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.errors import InternalError
from compiler.runtime.tvm_runtime import tvm_ffi

SetInstrument = Callable[[Any], Any]
_SCALES = (0.8, 1.25)
"""Minimum and maximum factor that scales the costs: larger differences have other causes (kernels that find their data
evicted from the caches by the instrument, other programs), and must not be subtracted from small calls."""


DYNAMIC_CALL = "vm.builtin.call_tir_dyn"
"""TVM's builtin that calls kernels with size arguments: its arguments are the kernel, its tensors, and the sizes as a
shape."""


@dataclass(frozen=True)
class TensorArgument:
    """Shape, dtype and address of a tensor passed to a call."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    address: int


@dataclass(frozen=True)
class Call:
    """One call of a run: the function, its arguments, and the depth of nested calls.

    Attributes:
        arguments: the tensors among the arguments, by position.
        scalars: the integers among them, by position.
        kinds: the types of all arguments; calls with equal kinds have the same instrument overhead.
        parent: index of the calling call, or None in `main`.
    """

    name: str
    arguments: dict[int, TensorArgument]
    scalars: dict[int, int]
    kinds: tuple[str, ...]
    depth: int
    parent: int | None


@dataclass
class Recording:
    """Calls in order, and the marks of every run in nanoseconds.

    Attributes:
        order: for each event, the index of its call.
        is_start: for each event, whether it was before (True) or after the call.
        entered, left: (runs, events) int64 marks of the instrument.
    """

    calls: list[Call]
    order: NDArray[np.int64]
    is_start: NDArray[np.bool_]
    entered: NDArray[np.int64]
    left: NDArray[np.int64]


@dataclass(frozen=True)
class CallTimes:
    """Corrected times of a recording, in seconds.

    start, duration: (runs, calls); duration includes nested calls.
    own: (runs, calls) duration without nested calls.
    crossing: mean subtracted cost of one crossing into the instrument.
    """

    start: NDArray[np.float64]
    duration: NDArray[np.float64]
    own: NDArray[np.float64]
    crossing: float


@contextmanager
def installed(set_instrument: SetInstrument, callback: Callable[..., int]) -> Iterator[None]:
    """Make the virtual machine call `callback` around each call inside the block."""
    set_instrument(tvm_ffi.convert(callback))
    try:
        yield
    finally:
        set_instrument(None)


def capture_calls(set_instrument: SetInstrument, run: Callable[[], object]) -> tuple[list[Call], list[int]]:
    """Run once and record the calls, and for each event (start or end) the index of its call."""
    calls: list[Call] = []
    order: list[int] = []
    open_calls: list[int] = []

    def note(_function: object, name: str, before: bool, _result: object, *arguments: Any) -> int:
        if not before:
            order.append(open_calls.pop())
            return 0
        parent = open_calls[-1] if open_calls else None
        open_calls.append(len(calls))
        order.append(len(calls))
        kinds = tuple(type(argument).__name__ for argument in arguments)
        if name == DYNAMIC_CALL:
            arguments = (*arguments[1:-1], *map(int, arguments[-1]))
        scalars = {position: value for position, value in enumerate(arguments) if type(value) is int}
        calls.append(Call(str(name), _tensors(arguments), scalars, kinds, len(open_calls) - 1, parent))
        return 0

    with installed(set_instrument, note):
        run()
    return calls, order


def _tensors(arguments: Sequence[object]) -> dict[int, TensorArgument]:
    tensors = {}
    for position, argument in enumerate(arguments):
        if isinstance(argument, tvm_ffi.Tensor):
            shape = tuple(int(size) for size in argument.shape)
            dtype = str(argument.dtype)
            tensors[position] = TensorArgument(shape, dtype, _nbytes(shape, dtype), argument.data_ptr())
    return tensors


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    bits = tvm_ffi.dtype(dtype).bits
    return int(np.prod(shape, dtype=np.int64)) * max(1, (bits + 7) // 8)


@dataclass
class _Marks:
    entered: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


def record(
    set_instrument: SetInstrument,
    run: Callable[[], object],
    keep_going: Callable[[int], bool],
    plain_run: Callable[[], None] | None = None,
) -> Recording:
    """Run repeatedly with the instrument while `keep_going(runs so far)`, at least once. Raises InternalError if the
    calls differ between runs, so that their times cannot be compared. `plain_run`: called between the runs, without the
    instrument, to be timed by the caller under the same conditions."""
    calls, order = capture_calls(set_instrument, run)
    clock = time.perf_counter_ns
    rows: list[_Marks] = []
    while not rows or keep_going(len(rows)):
        marks = _Marks()
        note_entered, note_left = marks.entered.append, marks.left.append

        def note(*_arguments: object, entered: Any = note_entered, left: Any = note_left) -> int:
            entered(clock())
            left(clock())
            return 0

        with installed(set_instrument, note):
            run()
        if len(marks.entered) != len(order):
            raise InternalError(
                f"a run made {len(marks.entered) // 2} calls where the first made {len(order) // 2}",
                "profile with inputs that take the same path every time",
            )
        rows.append(marks)
        if plain_run is not None:
            plain_run()
    starts = _starts(order)
    entered = np.array([row.entered for row in rows], dtype=np.int64)
    left = np.array([row.left for row in rows], dtype=np.int64)
    return Recording(calls, np.array(order, dtype=np.int64), starts, entered, left)


def _starts(order: Sequence[int]) -> NDArray[np.bool_]:
    seen: set[int] = set()
    starts = []
    for call in order:
        starts.append(call not in seen)
        seen.add(call)
    return np.array(starts, dtype=np.bool_)


def crossing_costs(recording: Recording, plain: float | None = None) -> NDArray[np.float64]:
    """For each event, the cost of entering the instrument, in nanoseconds (see the module's description). `plain`:
    seconds of a run without the instrument; the costs are scaled, within bounds, so that the instrumented runs match
    it."""
    if recording.entered.shape[1] < 2:
        return np.zeros(recording.entered.shape[1])
    gaps = np.median(recording.entered[:, 1:] - recording.left[:, :-1], axis=0)
    ahead: dict[tuple[str, ...], list[float]] = {}
    for event in np.flatnonzero(recording.is_start[1:]) + 1:
        kinds = recording.calls[recording.order[event]].kinds
        ahead.setdefault(kinds, []).append(gaps[event - 1])
    typical = {kinds: float(np.median(values)) for kinds, values in ahead.items()}
    # The first call has no gap before it; kinds that only it has cost at least as much as the cheapest ones.
    floor = float(gaps.min())
    costs = np.array([typical.get(recording.calls[call].kinds, floor) for call in recording.order])
    return costs if plain is None else costs * _scale(gaps, costs[1:], plain * 1e9)


def _scale(gaps: NDArray[np.float64], costs: NDArray[np.float64], plain: float) -> float:
    """The cost factor with which the gaps and intervals, minus their costs, sum to `plain` nanoseconds."""
    low, high = _SCALES
    for _ in range(30):
        middle = (low + high) / 2
        if np.maximum(gaps - middle * costs, 0).sum() > plain:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def call_times(recording: Recording, plain: float | None = None) -> CallTimes:
    """Times of each call in each run, without the instrument's overhead; `plain` as in `crossing_costs`."""
    costs = crossing_costs(recording, plain)
    runs, events = recording.entered.shape
    elapsed = np.zeros((runs, events))
    elapsed[:, 1:] = recording.entered[:, 1:] - recording.left[:, :-1]
    elapsed = np.maximum(elapsed - costs, 0.0)
    elapsed[:, 0] = 0.0
    clock = np.cumsum(elapsed, axis=1) * 1e-9
    count = len(recording.calls)
    start, end = np.zeros((runs, count)), np.zeros((runs, count))
    start[:, recording.order[recording.is_start]] = clock[:, recording.is_start]
    end[:, recording.order[~recording.is_start]] = clock[:, ~recording.is_start]
    duration = end - start
    self_time = duration.copy()
    for index, call in enumerate(recording.calls):
        if call.parent is not None:
            self_time[:, call.parent] -= duration[:, index]
    return CallTimes(start, duration, self_time, float(costs.mean()) * 1e-9 if events else 0.0)
