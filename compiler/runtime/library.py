"""Loads a module's shared library from memory, without leaving a file.

Also bounds the memory that TVM's pool keeps between runs of different sizes. The pool keeps the activations of every
size that ran (a batch of 7 rows does not reuse those of 8), until it is cleared as a whole.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.artifact.entries import (
    CHECK_ENTRY,
    EXPAND_ENTRY,
    MAIN_ENTRY,
    PREPARE_ENTRY,
    PREPARE_KEEPING_ENTRY,
    RUN_ENTRY,
    RUN_KEEPING_ENTRY,
)
from compiler.errors import ArtifactError, IncompatibleArtifactError, InternalError
from compiler.runtime.thread_pool import set_threads
from compiler.runtime.tvm_runtime import global_function

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PackedFunc, RuntimeModule, RuntimeTensor

_loads = itertools.count(1)
_CPU = 1  # DLPack's device type
_POOLED_ALLOCATOR = 2

# e_machine of the ELF header, by the name that platform.machine() returns
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243}
_ELF_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")
_SECTION_HEADER = struct.Struct("<IIQQQQIIQQ")
_LOADED_SEGMENT, _NO_SECTION, _WITHOUT_BYTES = 1, 0, 8


def check_elf(library: bytes | memoryview, architecture: str) -> None:
    """Reject files that may crash the system's loader or cannot run here. Raises ArtifactError if it is not a complete
    64-bit little-endian ELF shared library, and IncompatibleArtifactError if it is for another architecture."""
    broken = ArtifactError("the module's machine code is not a complete ELF shared library", "export the module again")
    if len(library) < _ELF_HEADER.size:
        raise broken
    fields = _ELF_HEADER.unpack(bytes(library[: _ELF_HEADER.size]))
    magic, bits, order, kind, machine, _, _, programs, sections, _, _, entry, count, section_entry, section_count, _ = (
        fields
    )
    if (magic, bits, order, kind) != (b"\x7fELF", 2, 1, 3):
        raise broken
    if machine != _ELF_MACHINES.get(architecture, machine):
        raise IncompatibleArtifactError(f"the module's machine code is not for {architecture} (ELF machine {machine})")
    if entry != _PROGRAM_HEADER.size or not _segments_fit(library, programs, count):
        raise broken
    if section_count and section_entry != _SECTION_HEADER.size:
        raise broken
    if not _sections_fit(library, sections, section_count):
        raise broken


def _segments_fit(library: bytes | memoryview, start: int, count: int) -> bool:
    """True if all segments lie within the file, fit their memory sizes, and at least one is loadable."""
    end = start + count * _PROGRAM_HEADER.size
    if end > len(library):
        return False
    loaded = False
    for kind, _, offset, address, _, file_bytes, memory_bytes, _ in _PROGRAM_HEADER.iter_unpack(library[start:end]):
        if offset + file_bytes > len(library):
            return False
        if kind == _LOADED_SEGMENT:
            loaded = True
            if file_bytes > memory_bytes or address + memory_bytes >= 1 << 64:
                return False
    return loaded


def _sections_fit(library: bytes | memoryview, start: int, count: int) -> bool:
    """True if all sections with contents lie within the file."""
    end = start + count * _SECTION_HEADER.size
    if end > len(library):
        return False
    for _, kind, _, _, offset, size, *_ in _SECTION_HEADER.iter_unpack(library[start:end]):
        if kind not in (_NO_SECTION, _WITHOUT_BYTES) and offset + size > len(library):
            return False
    return True


def load_executable(library: bytes | memoryview) -> RuntimeModule:
    """Load the shared library as a TVM module, from which virtual machines are created. Raises ArtifactError if the
    system's loader rejected it, or it contains no VM executable."""
    load = global_function("ffi.Module.load_from_file.so")
    set_threads()  # a library binds its parallel launch function when it is loaded
    try:
        if hasattr(os, "memfd_create"):
            return _load_from_memory(load, library)
        return _load_from_folder(load, library)
    except PermissionError:
        # The system forbids running code from anonymous memory.
        return _load_from_folder(load, library)


def _load_from_memory(load: PackedFunc, library: bytes | memoryview) -> RuntimeModule:
    descriptor = os.memfd_create("tensorwright-module", os.MFD_CLOEXEC)
    try:
        _write_all(descriptor, library)
        with _passing_descriptors() as folder:
            return _dlopen(load, _unique_path(folder, descriptor))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _passing_descriptors() -> Iterator[str]:
    """A folder of this process's descriptors in /proc, that of a thread which ends with the block.

    When an exception is thrown, TVM opens each loaded library again, by its path, for the names of its functions. By
    then, the descriptor's number may be that of a file that is being written; reading an empty one as a library ends
    the process (SIGBUS).
    """
    ready, done, links = threading.Event(), threading.Event(), list[str]()

    def wait() -> None:
        try:
            links.append(os.readlink("/proc/thread-self"))
        finally:
            ready.set()
        done.wait()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        ready.wait()
        if not links:
            raise PermissionError("/proc/thread-self cannot be read")
        yield f"/proc/{links[0]}/fd"
    finally:
        done.set()
        thread.join()


def _unique_path(folder: str, descriptor: int) -> str:
    """A path to the descriptor that no other load uses.

    The system's loader identifies libraries by path, even if the thread's and the descriptor's numbers were reused for
    others, so a counter is encoded in binary as "/./" and "//", which the kernel ignores.
    """
    counter = "".join("/." if bit == "1" else "/" for bit in f"{next(_loads):b}")
    return f"{folder}{counter}/{descriptor}"


def _load_from_folder(load: PackedFunc, library: bytes | memoryview) -> RuntimeModule:
    with tempfile.TemporaryDirectory(prefix="tensorwright-") as folder:
        path = Path(folder) / "module.so"
        path.write_bytes(library)
        return _dlopen(load, str(path))  # stays mapped after the file is removed


def _dlopen(load: PackedFunc, path: str) -> RuntimeModule:
    try:
        return load(path, "so")
    except Exception as error:  # TVM raises classes named by its C++ side
        text = str(error)
        if "failed to map segment" in text or "Operation not permitted" in text:
            raise PermissionError(text) from error
        raise ArtifactError(f"the module's machine code could not be loaded: {text}") from error


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def new_virtual_machine(executable: RuntimeModule) -> RuntimeModule:
    """Create a virtual machine for an executable; it must not be used by two threads at once. Raises ArtifactError if
    the library contains no VM executable, and InternalError if it calls a function that this runtime lacks."""
    return initialized(executable, (_CPU, 0, _POOLED_ALLOCATOR))


def initialized(executable: RuntimeModule, devices: Sequence[int]) -> RuntimeModule:
    """A virtual machine on devices: type, number and allocator of each, the CPU last. Raises as above."""
    try:
        machine = executable["vm_load_executable"]()
    except (AttributeError, ValueError) as error:
        raise ArtifactError("the module's library contains no VM executable", "compile the model again") from error
    try:
        machine["vm_initialization"](*devices)
    except Exception as error:  # TVM raises classes named by its C++ side
        raise InternalError(f"the module could not be initialized: {error}") from error
    return machine


def check_arity(machine: RuntimeModule, arguments: int) -> None:
    """Raise ArtifactError unless `main` takes that many arguments."""
    try:
        actual = machine["get_function_arity"](MAIN_ENTRY)
    except (AttributeError, ValueError) as error:
        raise ArtifactError("the module's library has no function `main`", "compile the model again") from error
    if actual != arguments:
        raise ArtifactError(
            f"the module's code takes {actual} arguments; its manifest names {arguments} inputs and parameters",
            "compile the model again",
        )


def expand_parameters(machine: RuntimeModule, stored: Sequence[RuntimeTensor]) -> list[RuntimeTensor]:
    """Expand compressed parameters to the arguments of `main`. Raises ArtifactError if the module's code does not
    accept them."""
    try:
        return list(machine[EXPAND_ENTRY](*stored))
    except Exception as error:  # TVM raises classes named by its C++ side
        raise ArtifactError(f"the module's parameters could not be expanded: {error}", "export it again") from error


def bound_main(machine: RuntimeModule, parameters: Sequence[RuntimeTensor]) -> PackedFunc:
    """`main` as a function of only the inputs: the machine keeps the parameters."""
    machine["save_function"](MAIN_ENTRY, "bound_main", 1, *parameters)
    return machine["bound_main"]


def can_prepare(machine: RuntimeModule, *, keeping: bool = False) -> bool:
    """True if the module has `main` in two parts, for runs of equal sizes; with `keeping`, parts that keep results."""
    prepare, run = _prepared_entries(keeping)
    return bool(machine.implements_function(prepare) and machine.implements_function(run))


def prepared_main(
    machine: RuntimeModule,
    inputs: Sequence[RuntimeTensor],
    parameters: Sequence[RuntimeTensor],
    *,
    keeping: bool = False,
) -> PackedFunc:
    """`main` as a function of inputs with the shapes of the given ones, one run at a time.

    The machine keeps the parameters, and the memory of every intermediate tensor; with `keeping` also the memory of the
    results, which each run overwrites.
    """
    prepare, run = _prepared_entries(keeping)
    machine["save_function"](run, "prepared_main", 1, *parameters, *machine[prepare](*inputs))
    return machine["prepared_main"]


def _prepared_entries(keeping: bool) -> tuple[str, str]:
    return (PREPARE_KEEPING_ENTRY, RUN_KEEPING_ENTRY) if keeping else (PREPARE_ENTRY, RUN_ENTRY)


def check_parameters(machine: RuntimeModule, parameters: Sequence[RuntimeTensor]) -> None:
    """Raise ArtifactError unless the parameters have the types and shapes that the code expects."""
    if not machine.implements_function(CHECK_ENTRY):
        return  # `main` checks them itself, on every run
    try:
        machine[CHECK_ENTRY](*parameters)
    except Exception as error:  # TVM raises classes named by its C++ side
        raise ArtifactError(f"the module's parameters do not fit its code: {error}", "export it again") from error


def release_memory() -> None:
    """Return memory that TVM's pool keeps for later runs to the system."""
    global_function("vm.builtin.memory_manager.clear")()


_KEPT_BYTES = 64 << 20  # for sizes that ran; more if a few of the largest size need more
_KEPT_LARGEST = 4
_KNOWN_SIZES = 4096
_KEPT_SIZES = 8  # if the C library does not count allocated bytes


class _Allocated(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = tuple((name, ctypes.c_size_t) for name in _names)


def _allocated_bytes() -> Callable[[], int] | None:
    """Function that counts the bytes that this process has allocated; None for C libraries without such a count."""
    mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo is None:
        return None
    mallinfo.restype = _Allocated

    def read() -> int:
        found = mallinfo()
        return int(found.hblkhd) + int(found.uordblks)

    return read


class PoolBound:
    """Clears the pool when the sizes that ran since the last time have left too much memory in it. Thread-safe."""

    def __init__(self) -> None:
        self._read = _allocated_bytes()
        self._lock = threading.Lock()
        self._codes = itertools.count()
        self._sizes: set[Hashable] = set()
        self._base: int | None = None
        self._largest = 0

    def register(self) -> int:
        """A number for a module's code; numbers are never reused."""
        return next(self._codes)

    def allocated(self) -> int:
        """Bytes that this process has allocated; 0 if unknown."""
        return 0 if self._read is None else self._read()

    def ran(self, size: Hashable, before: int) -> None:
        """Record that a run ended whose size its virtual machine had not run before. `before`: `allocated()` when it
        began."""
        with self._lock:
            if size in self._sizes:
                return
            now = self.allocated()
            self._largest = max(self._largest, now - before)
            self._base = before if self._base is None else self._base
            self._sizes.add(size)
            if len(self._sizes) > 1 and self._is_full(now - self._base):
                release_memory()
                self._sizes.clear()
                self._base, self._largest = None, 0

    def _is_full(self, kept_bytes: int) -> bool:
        if len(self._sizes) > (_KEPT_SIZES if self._read is None else _KNOWN_SIZES):
            return True
        return kept_bytes > max(_KEPT_BYTES, _KEPT_LARGEST * self._largest)


POOL = PoolBound()
"""Bound of the one pool of this process."""
