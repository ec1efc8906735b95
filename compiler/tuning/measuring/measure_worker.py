"""Checks and times kernels on a device. A process of `python -m compiler.tuning.measuring.measure_worker`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.tuning.measuring.channel import serve
from compiler.tuning.measuring.messages import (
    Argument,
    Effort,
    KernelLibrary,
    KernelTask,
    Measured,
    MeasureRequest,
    ReferenceRequest,
    Timing,
    WaitingClock,
    WorkerSetup,
    spread,
    typical,
)
from compiler.tuning.measuring.numbers import differs, poisoned, random_values
from compiler.tuning.measuring.runners import Kernel, Runner, make_runner

Array = np.ndarray
_MIN_SAMPLES = 4
_LOWEST = 3
_AGREEMENT = 0.02  # relative agreement of the lowest samples that shows no interference from other programs
_CLEAN = 0.02  # fraction of a sample that its threads may wait for processors
_PAUSE_SECONDS = 1e-3
_SAMPLE_SECONDS = 2e-4  # shorter kernels run several times per sample: the clock and the call cost 1 us
_SLOWER = 1.25  # candidates slower than this times the best so far get only a few samples
# Weights are read from enough copies to match the model's weights, but at most this many times the last cache: with
# less than that, the cache would still serve a part.
_CACHES_OF_COPIES = 3
_MAX_COPIES = 512


@dataclass
class Prepared:
    """A task's arguments on the device: one set per copy of the weights, all with the same data and outputs."""

    task: KernelTask
    sets: list[tuple[Any, ...]]
    outputs: list[int]
    expected: list[Array] | None = None


class Measurer:
    """Answers measuring requests for known tasks; keeps the arguments of only the last task."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._runner: Runner = make_runner(setup)
        self._tasks: dict[str, KernelTask] = {}
        self._expected: dict[str, list[Array]] = {}
        self._prepared: Prepared | None = None

    def handle(self, request: KernelTask | ReferenceRequest | MeasureRequest) -> Measured | None:
        """Register a task, run a reference, or measure."""
        if isinstance(request, KernelTask):
            self._tasks[request.key] = request
            return None
        start = time.perf_counter()
        prepared = self._prepare(request.key)
        timings: tuple[Timing, ...]
        if isinstance(request, ReferenceRequest):
            timings = (self._reference(prepared, request.library),)
        else:
            timings = self._measure(prepared, request)
        return Measured(timings, time.perf_counter() - start, self._runner.name)

    def _prepare(self, key: str) -> Prepared:
        if self._prepared is not None and self._prepared.task.key == key:
            return self._prepared
        self._prepared = None  # free the memory first
        task = self._tasks[key]
        arrays = [random_values(argument, i) for i, argument in enumerate(task.arguments)]
        tensors = [self._runner.tensor(array, each.dtype) for array, each in zip(arrays, task.arguments, strict=True)]
        sets = [tuple(tensors)]
        for _ in range(self._copies(task) - 1):
            sets.append(
                tuple(
                    self._runner.tensor(array, each.dtype) if each.is_constant else tensor
                    for array, tensor, each in zip(arrays, tensors, task.arguments, strict=True)
                )
            )
        outputs = [i for i, each in enumerate(task.arguments) if each.is_output]
        self._prepared = Prepared(task, sets, outputs, self._expected.get(key))
        return self._prepared

    def _copies(self, task: KernelTask) -> int:
        """Number of copies of the weights, so that as much is read between two uses of one as in the model."""
        own = sum(_nbytes(each) for each in task.arguments if each.is_constant)
        wanted = min(task.constant_bytes, _CACHES_OF_COPIES * self._setup.l3_bytes)
        return max(1, min(_MAX_COPIES, -(-wanted // own))) if own else 1

    def _reference(self, prepared: Prepared, library: KernelLibrary) -> Timing:
        try:
            prepared.expected = self._outputs(prepared, self._load(library))
        except Exception as error:
            return Timing((), "run-error", str(error)[-300:])
        self._expected[prepared.task.key] = prepared.expected
        return Timing((1.0,))

    def _load(self, library: KernelLibrary) -> Kernel:
        """Load a kernel for the task's arguments; its workspaces are appended to them."""
        kernel = self._runner.load(library.code)
        if not library.workspaces:
            return kernel
        workspaces = [self._runner.tensor(poisoned(each), each.dtype) for each in library.workspaces]
        evaluate = kernel.evaluate
        return Kernel(
            lambda *arguments: kernel.call(*arguments, *workspaces),
            kernel.clock,
            None if evaluate is None else lambda arguments, seconds: evaluate((*arguments, *workspaces), seconds),
        )

    def _outputs(self, prepared: Prepared, kernel: Kernel) -> list[Array]:
        arguments = prepared.sets[0]
        for i in prepared.outputs:
            self._runner.fill(arguments[i], poisoned(prepared.task.arguments[i]))
        kernel.call(*arguments)
        return [self._runner.fetch(arguments[i], prepared.task.arguments[i].dtype) for i in prepared.outputs]

    def _measure(self, prepared: Prepared, request: MeasureRequest) -> tuple[Timing, ...]:
        kernels: list[Kernel | Timing] = [self._checked(prepared, library) for library in request.libraries]
        samples: list[list[float]] = [[] for _ in kernels]
        for number in range(request.rounds):
            order = range(len(kernels)) if number % 2 == 0 else range(len(kernels) - 1, -1, -1)
            for i in order:
                kernel = kernels[i]
                if isinstance(kernel, Timing):
                    continue
                measured = take_samples(kernel, prepared.sets, request.effort)
                samples[i] += measured if request.rounds == 1 else [typical(measured)]
        return tuple(
            kernel if isinstance(kernel, Timing) else Timing(tuple(taken))
            for kernel, taken in zip(kernels, samples, strict=True)
        )

    def _checked(self, prepared: Prepared, library: KernelLibrary) -> Kernel | Timing:
        """The loaded kernel if its results are correct."""
        if prepared.expected is None:
            return Timing((), "run-error", "there are no reference numbers")
        try:
            kernel = self._load(library)
            outputs = self._outputs(prepared, kernel)
        except Exception as error:
            return Timing((), "run-error", f"{type(error).__name__}: {error}"[-300:])
        for actual, expected in zip(outputs, prepared.expected, strict=True):
            wrong = differs(actual, expected)
            if wrong is not None:
                return Timing((), "wrong-numbers", wrong)
        return kernel


def take_samples(kernel: Kernel, sets: list[tuple[Any, ...]], effort: Effort) -> list[float]:
    """Seconds per call, several samples.

    Samples in which one of our threads had to wait for a processor are discarded (if only one of two threads runs, it
    takes twice as long); if too few remain, those with the least waiting are used.
    """
    if kernel.evaluate is not None:
        return kernel.evaluate(sets[0], effort.seconds)
    clock, call, waiting = kernel.clock, kernel.call, WaitingClock()
    start = clock()
    call(*sets[0])
    first = max(clock() - start, 1e-7)
    inner = max(1, min(int(_SAMPLE_SECONDS / first), 200))
    samples: list[tuple[float, float]] = []  # (fraction of waiting, seconds per call)
    clean: list[float] = []
    end, position = time.perf_counter() + effort.seconds, 0
    while len(samples) < _MIN_SAMPLES or (
        time.perf_counter() < end and (len(clean) < _MIN_SAMPLES or spread(clean) > _AGREEMENT)
    ):
        chosen = [sets[(position + i) % len(sets)] for i in range(inner)]
        position += inner
        waited, start = waiting.seconds(), clock()
        for arguments in chosen:
            call(*arguments)
        elapsed = clock() - start
        share = (waiting.seconds() - waited) / elapsed
        samples.append((share, elapsed / inner))
        if share <= _CLEAN:
            clean.append(elapsed / inner)
        else:
            time.sleep(_PAUSE_SECONDS)  # the scheduler prefers processes that slept
        limit = effort.give_up_above
        if limit is not None and len(clean) >= _LOWEST and min(clean) > _SLOWER * limit:
            break
    if len(clean) >= _LOWEST:
        return clean
    return [seconds for _, seconds in sorted(samples)[:_MIN_SAMPLES]]


def _nbytes(argument: Argument) -> int:
    from compiler.artifact.dtypes import ELEMENT_TYPES

    return int(np.prod(argument.shape, dtype=np.int64)) * ELEMENT_TYPES[argument.dtype].numpy.itemsize


def _handler(setup: WorkerSetup) -> Callable[[Any], Any]:
    return Measurer(setup).handle


if __name__ == "__main__":
    serve(_handler)
