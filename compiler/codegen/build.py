"""Machine code from a lowered module: TVM generates objects, and the target's toolchain links them.

Kernels are compiled to object files in several processes, because code generation takes most of the compilation time
and TVM does it on one thread.

TVM's code generation cannot run in several threads: its LLVM options (`LLVM_OPTIONS`) apply to the process, and the
first thread to finish would reset them for the others. The processes are forked, so they already have the kernels and
only generate code. They end with the parent, and the parent ends them when it is interrupted.

Objects are cached in memory because quantization, pruning, search and tuning compile the same kernels many times.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import TypeAlias

import tvm
import tvm_ffi
from tvm import relax, te

import targets
from compiler.codegen.kernel_lowering import PIPELINE
from compiler.codegen.shared_kernels import SharedCall, share_kernels
from compiler.errors import CompilationError, StorageError
from compiler.support.compilation import one_at_a_time
from compiler.support.interrupts import uninterrupted
from compiler.support.processes import end_with_parent
from schedules.instructions.llvm_options import KERNEL_OPTIONS
from schedules.ir.size_proofs import name_sizes
from schedules.ir.stages import kernels_of
from schedules.ir.tvm_private import generate_bytecode, link_bytecode
from schedules.ir.tvm_types import Attrs, GlobalVar, PrimFunc, RuntimeModule

# Free space required before TVM writes objects: LLVM aborts the process when the disk is full. Objects and the library
# took 12 to 16 KiB per kernel in networks with static shapes (mobilenet_v3_large, resnet18); kernels with dynamic
# shapes are larger.
_ROOM = 1 << 20
_ROOM_OF_A_KERNEL = 128 << 10
# Module attributes: libraries that other compilers created in a graph pass (`relax.transform.RunCodegen`), and their
# constants.
_OTHER_CODE = ("external_mods", "const_name_to_constant")


@one_at_a_time
def build_library(mod: tvm.IRModule, target: targets.Target) -> bytes:
    """Build a lowered module into a shared library that holds a Relax VM executable.

    Raises:
        CompilationError: TVM failed to generate code; the error contains TVM's message.
        StorageError: the temporary folder is full or not writable.
        targets.TargetError: no linker, or it failed.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="tensorwright-") as name:
            folder = Path(name)
            _check_room(folder, len(list(kernels_of(mod))))
            try:
                executable, objects = _generated(mod, target, folder)
            except Exception as error:  # TVM passes may raise any exception
                raise CompilationError(
                    f"code generation for target {target.name!r} failed: {error}", "this is a defect; please report it"
                ) from error
            path = folder / "model.so"
            target.export_library(executable, path, objects)
            return path.read_bytes()
    except OSError as error:
        raise StorageError(f"the library could not be written: {error}", "free space in TMPDIR") from error


def _check_room(folder: Path, kernels: int) -> None:
    """Raise StorageError if a folder has too little free space for a library of that many kernels."""
    disk = os.statvfs(folder)
    free, needed = disk.f_bavail * disk.f_frsize, _ROOM + kernels * _ROOM_OF_A_KERNEL
    if free < needed:
        raise StorageError(
            f"{folder.parent} has {free / 2**20:.1f} MiB free, and building may take {needed / 2**20:.1f}",
            "free some space, or set TMPDIR to a folder on another disk",
        )


def _generated(mod: tvm.IRModule, target: targets.Target, folder: Path) -> tuple[RuntimeModule, list[Path]]:
    """The executable, and the kernels' objects to link to it."""
    tvm_target = target.tvm_target()
    kernels = list(kernels_of(mod))
    if not target.builds_in_parts or any(name in (mod.attrs or {}) for name in _OTHER_CODE):
        with tvm_target:
            return relax.build(mod, tvm_target, relax_pipeline=None, tir_pipeline=PIPELINE), []
    # As `relax.build` does, except that the kernels are built separately.
    builder = relax.ExecBuilder()
    generate_bytecode(builder, mod)
    if not kernels:
        return link_bytecode(builder, tvm_target), []
    if not worth_parts(kernels) and not any(own_options(kernel) for _, kernel in kernels):
        objects = _Work([kernels], [tvm_target], mod.attrs, folder).objects()
        empty = _llvm_module([], tvm_target, PIPELINE, folder / "empty.ll")
        return link_bytecode(builder, tvm_target, empty), objects
    distinct, aliases = distinct_kernels(kernels)
    built, calls = share_kernels(distinct)
    objects = build_objects(built, mod.attrs, tvm_target, folder)
    if aliases or calls:
        objects.append(alias_object(aliases, calls, tvm_target, PIPELINE, folder / "aliases.o"))
    return link_bytecode(builder, tvm_target), objects


Kernel: TypeAlias = "tuple[GlobalVar, PrimFunc]"  # its global variable and the PrimFunc

# Uses the calling convention of packed functions (TVMFFISafeCallType).
_ALIAS = """
declare i32 @__tvm_ffi_{kernel}(ptr, ptr, i32, ptr)
define i32 @__tvm_ffi_{name}(ptr %0, ptr %1, i32 %2, ptr %3) {{
  %5 = tail call i32 @__tvm_ffi_{kernel}(ptr %0, ptr %1, i32 %2, ptr %3)
  ret i32 %5
}}
"""

# An argument is a type and a 64-bit value (TVMFFIAny).
_SHARED = """
declare i32 @__tvm_ffi_{kernel}(ptr, ptr, i32, ptr)
define i32 @__tvm_ffi_{name}(ptr %0, ptr %1, i32 %2, ptr %3) {{
  %arguments = alloca [{count} x {{ i64, i64 }}], align 16
{passed}
  %result = call i32 @__tvm_ffi_{kernel}(ptr %0, ptr %arguments, i32 {count}, ptr %3)
  ret i32 %result
}}
"""
_GIVEN = """
  %from{to} = getelementptr {{ i64, i64 }}, ptr %1, i64 {at}
  %to{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}
  call void @llvm.memcpy.p0.p0.i64(ptr align 8 %to{to}, ptr align 8 %from{to}, i64 16, i1 false)"""
_CONSTANT = """
  %type{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}, i32 0
  %to{to} = getelementptr {{ i64, i64 }}, ptr %arguments, i64 {to}, i32 1
  store {{ i32, i32 }} {{ i32 {type_index}, i32 0 }}, ptr %type{to}, align 8
  store i64 {value}, ptr %to{to}, align 8"""
_COPY = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"
_INTEGER = 1  # kTVMFFIInt


def distinct_kernels(kernels: Sequence[Kernel]) -> tuple[list[Kernel], dict[str, str]]:
    """One kernel from each set of equal kernels, and a map from every other kernel's name to that kernel's.

    Computed sizes also count as independent sizes, so layers for images of different sizes share their code.
    """
    distinct: list[Kernel] = []
    aliases: dict[str, str] = {}
    by_hash: dict[int, list[Kernel]] = {}
    for variable, kernel in kernels:
        named = name_sizes(kernel)
        plain = named.without_attr("global_symbol")
        alike = by_hash.setdefault(tvm_ffi.structural_hash(plain, map_free_vars=True), [])
        known = next((each for each, other in alike if _are_equal(other, plain)), None)
        if known is None:
            alike.append((variable, plain))
            distinct.append((variable, named))
        else:
            aliases[variable.name_hint] = known.name_hint
    return distinct, aliases


def _are_equal(left: PrimFunc, right: PrimFunc) -> bool:
    return bool(tvm_ffi.structural_equal(left, right, map_free_vars=True))


def alias_object(
    aliases: Mapping[str, str], calls: Mapping[str, SharedCall], target: tvm.target.Target, pipeline: str, path: Path
) -> Path:
    """Write an object in which each name jumps to its kernel, or calls it with constants, for the TVM target."""
    shared = {**calls, **{name: calls[kernel] for name, kernel in aliases.items() if kernel in calls}}
    functions = [_ALIAS.format(name=name, kernel=each) for name, each in aliases.items() if name not in shared]
    functions += [_calling(name, call) for name, call in shared.items()]
    declared: set[str] = set()
    body = [line for function in functions for line in function.splitlines() if _is_first(line, declared)]
    _llvm_module(body, target, pipeline, path.with_suffix(".ll")).write_to_file(str(path), "o")
    return path


def _llvm_module(body: Sequence[str], target: tvm.target.Target, pipeline: str, path: Path) -> RuntimeModule:
    """A module from lines of LLVM IR text for the TVM target; the text is written to `path`."""
    key = tvm.ir.save_json(target)
    if key not in _HEADS:
        _HEADS[key] = _head_of(target, pipeline)
    layout, flag = _HEADS[key]
    path.write_text("\n".join([*layout, *body, "!llvm.module.flags = !{!0}", f"!0 = {flag}", ""]))
    return tvm.runtime.load_module(str(path))


_HEADS: dict[str, tuple[list[str], str]] = {}  # by TVM target


def _head_of(target: tvm.target.Target, pipeline: str) -> tuple[list[str], str]:
    """The lines of LLVM IR text that name a target, and the flag by which TVM recognizes the target when it loads the
    text."""
    x = te.placeholder((1,), name="x")
    empty = te.create_prim_func([x, te.compute((1,), lambda i: x[i])]).with_attr("global_symbol", "empty")
    with target:
        source = tvm.tirx.build(tvm.IRModule({"empty": empty}), target, pipeline).inspect_source("ll")
    lines = source.splitlines()
    flag = next(line.partition(" = ")[2] for line in lines if '!"tvm_target"' in line)
    return [line for line in lines if line.startswith("target ")], flag


def _calling(name: str, call: SharedCall) -> str:
    """The text of a function that calls its shared code with some of its own arguments and with constants."""
    passed = [_GIVEN.format(at=at, to=to) for to, at in enumerate(call.given)]
    passed += [
        _CONSTANT.format(to=to, type_index=_INTEGER, value=value)
        for to, value in enumerate(call.constants, start=len(call.given))
    ]
    function = _SHARED.format(name=name, kernel=call.kernel, count=len(passed), passed="".join(passed))
    return f"{_COPY}\n{function}"


def _is_first(line: str, declared: set[str]) -> bool:
    """True if the line is not a declaration, or has not been declared before."""
    if not line.startswith("declare "):
        return True
    seen = line in declared
    declared.add(line)
    return not seen


_PART = 4  # kernels per object: with fewer, the overhead outweighs the better load balance
_MIN_KERNELS = 12  # minimum number of kernels for which processes pay off
_NUMBER_BYTES = 4  # size of a part number in the pipe


class PartFailedError(Exception):
    """A process failed to generate its code; the message is TVM's, or says how the process ended."""


@dataclass(frozen=True)
class _Work:
    """Kernels grouped in parts, a target for each part, the module's attributes and a folder for the objects."""

    parts: Sequence[Sequence[tuple[GlobalVar, PrimFunc]]]
    targets: Sequence[tvm.target.Target]
    attributes: Attrs
    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / f"kernels{number}.o"

    def module(self, number: int) -> tvm.IRModule:
        """The kernels of a part."""
        return tvm.IRModule(dict(self.parts[number]), attrs=self.attributes)

    def key(self, number: int) -> bytes:
        """A digest of everything a part's object depends on, including names."""
        digest = hashlib.sha256(tvm.ir.save_json(self.module(number)).encode())
        digest.update(tvm.ir.save_json(self.targets[number]).encode())
        return digest.digest()

    def build(self, number: int) -> None:
        """Write a part's object."""
        target = self.targets[number]
        with target:
            tvm.tirx.build(self.module(number), target, PIPELINE).write_to_file(str(self.path(number)), "o")

    def objects(self) -> list[Path]:
        """Write the objects of all parts: those from an earlier compilation are reused, the others are built, in
        processes if that pays off. Raises like `build_objects`."""
        keys = [self.key(number) for number in range(len(self.parts))]
        missing = []
        for number, key in enumerate(keys):
            known = _kept.get(key)
            if known is None:
                missing.append(number)
            else:
                self.path(number).write_bytes(known)
        if worth_parts([kernel for number in missing for kernel in self.parts[number]]):
            _build_in_processes(self, missing)
        else:
            _build_here(self, missing)
        for number in missing:
            _kept.add(keys[number], self.path(number).read_bytes())
        return [self.path(number) for number in range(len(self.parts))]


class _Kept:
    """The most recently used objects, by the digests of their kernels."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._objects: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> bytes | None:
        entry = self._objects.get(key)
        if entry is not None:
            self._objects.move_to_end(key)
        return entry

    def add(self, key: bytes, content: bytes) -> None:
        """Add the object for a new key, and evict the least recently used objects if necessary."""
        self._objects[key] = content
        self._bytes += len(content)
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._objects.popitem(last=False)[1])


_kept = _Kept(32 << 20)  # about 300 networks of 10 kernels


def worth_parts(kernels: Sequence[object]) -> bool:
    """True to distribute the kernels over processes. Never true in processes that may have no children (of a
    `multiprocessing.Pool`)."""
    return processes() > 1 and len(kernels) >= _MIN_KERNELS and not multiprocessing.current_process().daemon


def processes() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0))


def own_options(kernel: PrimFunc) -> tuple[str, ...]:
    """The LLVM options that a kernel requests by its attributes."""
    return tuple(option for name, option in KERNEL_OPTIONS.items() if kernel.attrs and name in kernel.attrs)


def build_objects(
    kernels: Sequence[tuple[GlobalVar, PrimFunc]], attributes: Attrs, target: tvm.target.Target, folder: Path
) -> list[Path]:
    """Object files of the kernels, which are pairs of a global variable and a PrimFunc, for the TVM target.

    Raises PartFailedError when code generation fails in a process or a process dies. With too few kernels for
    processes, TVM's own exceptions are raised. No process is left running in any case.
    """
    return _work_of(kernels, attributes, target, folder).objects()


def _build_here(work: _Work, parts: Sequence[int]) -> None:
    for number in parts:
        work.build(number)


def _build_in_processes(work: _Work, parts: Sequence[int]) -> None:
    waiting = _numbers(parts)
    context = multiprocessing.get_context("fork")
    started: list[tuple[ForkProcess, Connection]] = []
    try:
        for _ in range(min(processes(), len(parts))):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(work, waiting, theirs, os.getpid()), daemon=True)
            started.append((process, ours))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads; see above
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


def _numbers(numbers: Sequence[int]) -> int:
    """A pipe from which each reader takes the next number, until none are left."""
    reader, writer = os.pipe()
    # A pipe holds at least 64 KiB: 16,384 parts of four kernels each.
    data = b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in numbers)
    os.set_blocking(writer, False)
    written = os.write(writer, data)
    os.close(writer)
    if written != len(data):
        os.close(reader)
        raise PartFailedError(f"{len(numbers) * _PART} kernels are more than a module can have")
    return reader


def _wait(answers: Sequence[Connection]) -> None:
    """Wait until every process has reported that no part is left. Raises PartFailedError as soon as one fails."""
    pending = list(answers)
    while pending:
        for answer in multiprocessing.connection.wait(pending):
            assert isinstance(answer, Connection)
            try:
                problem = answer.recv()
            except EOFError:
                problem = "a code generation process was killed (is there enough memory?)"
            if problem is not None:
                raise PartFailedError(problem)
            pending.remove(answer)


def _run(work: _Work, waiting: int, answer: Connection, parent: int) -> None:
    """Run in a child process: build parts until none are left, then send None, or the error."""
    signal.set_wakeup_fd(-1)  # the parent's end of the pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all processes; the parent handles it
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
    # Convolutions take longest and have options; they come first so that the processes end at about the same time.
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
