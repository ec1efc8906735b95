"""Compiles kernels to object files in several processes: code generation takes most of the time of a compilation, and
TVM does it on one thread.

TVM's code generation cannot run in several threads: its options of LLVM (`LLVM_OPTIONS`) belong to the process, and the
first thread to finish would take them back from the others. The processes are forked, so that they have the kernels
already, and do nothing but generate code. They end with the parent, and the parent ends them when it is interrupted.
"""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.connection
import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TYPE_CHECKING

import tvm

from compiler.codegen.kernel_lowering import PIPELINE
from compiler.support.interrupts import uninterrupted
from compiler.support.parent_death import end_with_parent
from schedules.instructions.llvm_options import KERNEL_OPTIONS

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Attrs, GlobalVar, PrimFunc

_PART = 4  # kernels per object: with fewer, the overhead outweighs the better load balance
_LEAST = 12  # least number of kernels for which processes pay off
_NUMBER_BYTES = 4  # of a part's number in the pipe


class PartFailedError(Exception):
    """A process could not generate its code; the message is TVM's, or says what ended the process."""


@dataclass(frozen=True)
class _Work:
    """Work for a forked process: kernels in parts, a target for each, the module's attributes and a folder."""

    parts: Sequence[Sequence[tuple[GlobalVar, PrimFunc]]]
    targets: Sequence[tvm.target.Target]
    attributes: Attrs
    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / f"kernels{number}.o"

    def build(self, number: int) -> None:
        """Write the object of a part."""
        target = self.targets[number]
        with target:
            part = tvm.IRModule(dict(self.parts[number]), attrs=self.attributes)
            tvm.tirx.build(part, target, PIPELINE).write_to_file(str(self.path(number)), "o")


def worth_parts(kernels: Sequence[object]) -> bool:
    """True to distribute the kernels to processes. Processes that may have no children (of a `multiprocessing.Pool`) do
    not."""
    return processes() > 1 and len(kernels) >= _LEAST and not multiprocessing.current_process().daemon


def processes() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0))


def own_options(kernel: PrimFunc) -> tuple[str, ...]:
    """The options of LLVM that a kernel asks for by its attributes."""
    return tuple(option for name, option in KERNEL_OPTIONS.items() if kernel.attrs and name in kernel.attrs)


def build_objects(
    kernels: Sequence[tuple[GlobalVar, PrimFunc]], attributes: Attrs, target: tvm.target.Target, folder: Path
) -> list[Path]:
    """Object files of the kernels, (global variable, PrimFunc) each, for TVM's target.

    Raises PartFailedError when code generation fails in a process or a process dies, what TVM raises where there are
    too few kernels for processes. However it returns, no process is left.
    """
    work = _work_of(kernels, attributes, target, folder)
    numbers = range(len(work.parts))
    if worth_parts(kernels):
        _build_in_processes(work)
    else:
        for number in numbers:
            work.build(number)
    return [work.path(number) for number in numbers]


def _build_in_processes(work: _Work) -> None:
    waiting = _numbers(len(work.parts))
    context = multiprocessing.get_context("fork")
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for _ in range(min(processes(), len(work.parts))):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, waiting, theirs, os.getpid()), daemon=True)
            started.append((process, ours))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of forking where there are threads: see above
                process.start()
            theirs.close()
        _wait([ours for _, ours in started])
    finally:
        _end(started, waiting)


@uninterrupted
def _end(started: Sequence[tuple[ForkProcess, Connection]], waiting: int) -> None:
    os.close(waiting)
    for process, ours in started:
        if process.pid is not None:
            process.kill()
            process.join()
        ours.close()


def _numbers(count: int) -> int:
    """A pipe from which each reader takes the next number below `count`, until there are no more."""
    reader, writer = os.pipe()
    # A pipe holds 64 KiB at least: 16,384 parts, of four kernels each.
    data = b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in range(count))
    os.set_blocking(writer, False)
    written = os.write(writer, data)
    os.close(writer)
    if written != len(data):
        os.close(reader)
        raise PartFailedError(f"{count * _PART} kernels are more than a module can have")
    return reader


def _wait(answers: Sequence[Connection]) -> None:
    """Until every process said that no part is left. Raises PartFailedError as soon as one failed."""
    left = list(answers)
    while left:
        for answer in multiprocessing.connection.wait(left):
            assert isinstance(answer, Connection)
            try:
                problem = answer.recv()
            except EOFError:
                problem = "a code generation process was killed (is there enough memory?)"
            if problem is not None:
                raise PartFailedError(problem)
            left.remove(answer)


def _run(work: _Work, waiting: int, answer: Connection, parent: int) -> None:
    """Runs in a child process: build parts until none are left, then send None, or the error."""
    signal.set_wakeup_fd(-1)  # the parent's end of the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the parent sees to it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent)
    gc.disable()  # a collection would touch, and so copy, all memory shared with the parent
    try:
        while number := os.read(waiting, _NUMBER_BYTES):
            work.build(int.from_bytes(number, "little"))
        answer.send(None)
    except Exception as error:
        answer.send(str(error) or type(error).__name__)


def _work_of(
    kernels: Sequence[tuple[GlobalVar, PrimFunc]], attributes: Attrs, target: tvm.target.Target, folder: Path
) -> _Work:
    alike: dict[tuple[str, ...], list[tuple[GlobalVar, PrimFunc]]] = {}
    for each in kernels:
        alike.setdefault(own_options(each[1]), []).append(each)
    parts: list[Sequence[tuple[GlobalVar, PrimFunc]]] = []
    targets: list[tvm.target.Target] = []
    # Convolutions, which take longest and have options, come first, so that the processes end at about the same time.
    for options in sorted(alike, key=lambda names: (not names, names)):
        own = alike[options]
        parts += [own[start : start + _PART] for start in range(0, len(own), _PART)]
        targets += [_with_options(target, options)] * (len(parts) - len(targets))
    return _Work(parts, targets, attributes, folder)


def _with_options(target: tvm.target.Target, options: Sequence[str]) -> tvm.target.Target:
    if not options:
        return target
    described = dict(target.export())
    return tvm.target.Target({**described, "cl-opt": [*described.get("cl-opt", ()), *options]})
