"""Times the parts of a module's parallel regions one after another on one core; started by `__main__`.

    python -m benchmarks.cores.emulate PLAN.json

When a module is loaded, TVM looks `TVMBackendParallelLaunch` up in a table of its runtime. Here the table contains the
function in `launch.c`, which cuts a region into as many parts as a machine has cores, like TVM's own, and times each
part. PLAN lists the modules and their cores; the result is printed as JSON, a list of calls for each module.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.profiling.attribution import RUNTIME, kind_of
from compiler.profiling.instrument import DYNAMIC_CALL, call_times, installed, record
from compiler.profiling.profile import named_calls
from compiler.profiling.workload import Workload, prepare
from compiler.runtime import load
from compiler.runtime.executor import LocalExecutor
from compiler.runtime.thread_pool import set_threads
from compiler.runtime.tvm_runtime import tvm_ffi
from compiler.support.balance import task_counts
from targets.toolchain import find_compiler

_SOURCE = Path(__file__).with_name("launch.c")
_SYMBOL = b"__TVMBackendParallelLaunch"
_MIN_WORK, _MIN_SHARE = 60e-9, 0.05  # minimum of a part with work: seconds, and fraction of the longest part


@dataclass(frozen=True)
class Region:
    """A parallel region of a call: seconds of its longest part and of all parts, and the number of parts with work."""

    longest: float
    total: float
    busy: int


@dataclass(frozen=True)
class CallParts:
    """A call of a kernel.

    Attributes:
        tasks: tasks of its parallel loops; None if they are determined at run time.
        reason: the compiler's reason why one core computes it.
        serial: seconds outside parallel regions.
        weight_bytes, other_bytes: bytes of the parameters that it reads, and of its other tensors.
    """

    kernel: str
    kind: str
    rule: str | None
    nodes: tuple[str, ...]
    tasks: tuple[int, ...] | None
    reason: str | None
    serial: float
    regions: tuple[Region, ...]
    weight_bytes: int
    other_bytes: int


class Launcher:
    """The parallel launch function of every module that this process loads from now on."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "launch.so"
            find_compiler().run(["-x", "c", "-O2", "-fPIC", "-shared", _SOURCE, "-o", library])
            self._library = ctypes.CDLL(str(library))
        self._library.noted.restype = ctypes.c_int64
        self._library.first_note.restype = ctypes.POINTER(ctypes.c_int64)
        self._library.set_parts.argtypes = (ctypes.c_int, ctypes.c_int64)
        set_threads()  # the table names TVM's own function
        ffi = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())
        address = ctypes.cast(self._library.launch, ctypes.c_void_p)
        if ffi.TVMFFIEnvModRegisterContextSymbol(_SYMBOL, address):
            raise RuntimeError("TVM did not take the launch function")

    def set_parts(self, parts: int, evicted: int) -> None:
        self._library.set_parts(parts, evicted)

    def forget(self) -> None:
        self._library.forget()

    def noted(self) -> int:
        """Number of notes so far."""
        return int(self._library.noted())

    def notes(self) -> np.ndarray:
        """Times of each region since `forget`: its number of parts, its time and theirs, in nanoseconds."""
        count = self.noted()
        return np.ctypeslib.as_array(self._library.first_note(), (count,)).copy() if count else np.empty(0, np.int64)


def main() -> int:
    """Read the plan, time each module, print."""
    plan = json.loads(Path(sys.argv[1]).read_text())
    launcher = Launcher()
    with np.load(plan["arrays"]) as stored:
        inputs = {name: stored[name] for name in stored.files}
    results = []
    for each in plan["modules"]:
        launcher.set_parts(each["cores"], each["evicted"])
        workload = prepare(load(each["path"], threads=1), inputs, sizes=plan["sizes"] or None)
        results.append([asdict(call) for call in _on_one_thread(workload, launcher, plan["runs"])])
    print(json.dumps(results))
    return 0


def _on_one_thread(workload: Workload, launcher: Launcher, runs: int) -> list[CallParts]:
    return workload.on_its_threads(lambda: timed_calls(workload, launcher, runs))


def timed_calls(workload: Workload, launcher: Launcher, runs: int) -> list[CallParts]:
    """The calls of a run in order; each time is the minimum over several runs."""
    workload.run()
    rows: list[np.ndarray] = []

    def run() -> None:
        launcher.forget()
        workload.run()
        rows.append(launcher.notes())

    recording = record(workload.set_instrument, run, lambda done: done < runs)
    self_times = call_times(recording).own.min(axis=0)
    places = _places(workload, launcher)
    module = workload.module
    entries = {entry.kernel: entry for entry in module.manifest.kernels}
    callers = {call.parent for call in recording.calls}
    timed = []
    for index, name in enumerate(named_calls(recording.calls, module.manifest.calls)):
        place = places[index]
        regions, inside = _regions(np.array([row[place.begin : place.end] for row in rows[1:]]))
        entry = entries.get(name.kernel)
        kind = RUNTIME if index in callers else kind_of(name.kernel)
        weights = {at: size for at, size in place.weights.items() if entry is None or at not in entry.gathered}
        computes = kind != RUNTIME  # the runtime's functions do not read the elements of tensors
        timed.append(
            CallParts(
                kernel=name.kernel,
                kind=kind,
                rule=None if entry is None else entry.rule,
                nodes=name.nodes,
                tasks=None if entry is None or entry.tasks is None else task_counts(entry.tasks, {}),
                reason=None if entry is None else entry.serial,
                serial=max(0.0, float(self_times[index]) - inside),
                regions=regions,
                weight_bytes=sum(weights.values()) if computes else 0,
                other_bytes=sum(place.others.values()) if computes else 0,
            )
        )
    return timed


@dataclass
class _Place:
    """The range of notes of a call's regions, and the bytes of its tensors by position: parameters, and others."""

    begin: int
    end: int
    weights: dict[int, int]
    others: dict[int, int]


def _places(workload: Workload, launcher: Launcher) -> list[_Place]:
    """The range of notes of each call of a run."""
    executor = workload.module._executor
    assert isinstance(executor, LocalExecutor)
    parameters = {each.data_ptr() for each in executor._parameters}
    places: list[_Place] = []
    open_calls: list[_Place] = []

    def note(_function: object, name: str, before: bool, _result: object, *arguments: Any) -> int:
        if not before:
            open_calls.pop().end = launcher.noted()
            return 0
        places.append(_Place(launcher.noted(), 0, {}, {}))
        for position, argument in enumerate(arguments[1:-1] if name == DYNAMIC_CALL else arguments):
            if isinstance(argument, tvm_ffi.Tensor):
                kind = places[-1].weights if argument.data_ptr() in parameters else places[-1].others
                kind[position] = _nbytes(argument)
        open_calls.append(places[-1])
        return 0

    launcher.forget()
    with installed(workload.set_instrument, note):
        workload.run()
    return places


def _nbytes(tensor: Any) -> int:
    bits = tvm_ffi.dtype(tensor.dtype).bits
    return int(np.prod(tensor.shape, dtype=np.int64)) * max(1, (bits + 7) // 8)


def _regions(rows: np.ndarray) -> tuple[tuple[Region, ...], float]:
    """The regions of a call from the notes of several runs, and their total seconds."""
    best = rows.min(axis=0)
    regions = []
    at, total = 0, 0
    while at < len(best):
        count = int(best[at])
        times = best[at + 2 : at + 2 + count] * 1e-9
        total += best[at + 1]
        busy = int(np.count_nonzero(times > max(_MIN_WORK, _MIN_SHARE * float(times.max()))))
        regions.append(Region(float(times.max()), float(times.sum()), max(busy, 1)))
        at += 2 + count
    return tuple(regions), total * 1e-9


if __name__ == "__main__":
    sys.exit(main())
