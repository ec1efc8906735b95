"""The C++ runtime under AddressSanitizer and UndefinedBehaviorSanitizer.

A process that answers commands, and the device server.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import targets
from compiler.device.programs import (
    COMPILE_OPTIONS,
    LIBRARY_SOURCES,
    NO_LINKED_MODULE,
    PROGRAMS,
    SOURCES,
    THREAD_POOL_SOURCES,
    device_programs,
    tvm_link_options,
)
from compiler.device.runtime_libraries import runtime_libraries
from compiler.device.runtime_sources import compile_objects, ffi_source_folder, include_folders, include_options
from compiler.device.third_party_objects import third_party_includes, third_party_objects
from compiler.support.cache import cached, key_of

CPP = Path(__file__).with_name("cpp")
_SANITIZERS = ("-g1", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
_DRIVER_SOURCES = (SOURCES / "mapped_code.cc", CPP / "driver.cc")
# TVM's own leaks at exit are ignored.
_SUPPRESSIONS = "leak:libtvm_runtime\nleak:libtvm_ffi\n"
_NEW_LINE = "\x1e"  # separator within an answer
_SHOWN = 3000


class SanitizerReport(Exception):  # noqa: N818 (it is what they call it)
    """The process ended: the report of the sanitizers, or the cause of its death."""


def build_driver(*, sanitized: bool = True) -> Path:
    """The program of `cpp/driver.cc`. Raises like `_built`.

    Args:
        sanitized: with sanitizers; without, it is linked with the objects of the device programs.
    """
    if not sanitized:
        programs = device_programs(targets.get("host", cores=1))
        return _built("driver", {"driver": _DRIVER_SOURCES}, (), [programs / "library.o", programs / "thread_pool.o"])
    return _sanitized("driver", [*(SOURCES / name for name in (*LIBRARY_SOURCES, NO_LINKED_MODULE)), *_DRIVER_SOURCES])


def build_server() -> Path:
    """The device server. Raises like `_built`."""
    names = (*LIBRARY_SOURCES, *PROGRAMS["tensorwright-server"], NO_LINKED_MODULE)
    return _sanitized("server", [SOURCES / name for name in names])


def sanitizer_environment(**options: str) -> dict[str, str]:
    """The environment of such a program; `options`: additional options for AddressSanitizer."""
    own = {"allocator_may_return_null": "1", "detect_leaks": "1", "abort_on_error": "0", **options}
    joined = ":".join(f"{name}={value}" for name, value in own.items())
    return {**os.environ, "ASAN_OPTIONS": joined, "UBSAN_OPTIONS": "print_stacktrace=1"}


def _sanitized(name: str, sources: Sequence[Path]) -> Path:
    _check_sanitizers(targets.get("host", cores=1))
    parser = CPP / "instrumented_json.cc"  # only TVM's parser is compiled with sanitizers
    pool = [SOURCES / each for each in THREAD_POOL_SOURCES]
    return _built(name, {name: [*sources, parser], "thread_pool": pool}, _SANITIZERS)


def _built(name: str, groups: Mapping[str, Sequence[Path]], own: Sequence[str], objects: Sequence[Path] = ()) -> Path:
    """A program, compiled once.

    Args:
        groups: sources that are compiled together.
        own: additional options of the compiler.
        objects: additional objects.

    Raises:
        targets.ToolchainMissing: there is no compiler with sanitizers, for which tests skip (tests/conftest.py).
        targets.LinkError: it failed.
    """
    target = targets.get("host", cores=1)
    headers = [*sorted(SOURCES.glob("*.h")), *sorted(CPP.glob("*.h"))]
    contents = [path.read_bytes() for path in (*headers, *chain(*groups.values()))]
    compiler = target.compiler()
    libraries = sorted({path.parent for path in runtime_libraries(target)})  # the program searches for them there

    def build(folder: Path) -> None:
        folders = [*include_folders(), ffi_source_folder() / "extra", *third_party_includes()]
        options = [*COMPILE_OPTIONS, *own, f"-I{SOURCES}", f"-I{CPP}", *include_options(folders)]
        made = compile_objects(target, groups, options, folder)
        links = [part for path in libraries for part in (*tvm_link_options(path), f"-Wl,-rpath,{path}")]
        linked = [*made, *objects, *third_party_objects(target, own)]
        compiler.run([*own, *linked, "-o", folder / name, *(part for part in links if part != "-s")])
        (folder / "suppressions").write_text(_SUPPRESSIONS, encoding="utf-8")

    key = key_of([compiler.version(), *own, *map(str, (*libraries, *objects)), *contents])
    return cached(f"fuzz-{name}", key, build) / name


def _check_sanitizers(target: targets.Target) -> None:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cc"
        source.write_text("int main() {}\n", encoding="utf-8")
        try:
            target.compiler().run([*_SANITIZERS, source, "-o", source.with_suffix("")])
        except targets.LinkError as error:
            raise targets.ToolchainMissing(
                "the compiler has no AddressSanitizer", "install libasan and libubsan (Debian: g++)"
            ) from error


class Driver:
    """A running driver, restarted after each report."""

    def __init__(self, program: Path) -> None:
        self._program = program
        self._process: subprocess.Popen[str] | None = None
        self._errors = TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as this lives)

    def ask(self, command: Sequence[str]) -> str:
        """The answer to one command: "ok", or the error.

        Raises:
            SanitizerReport: the process ended.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(" ".join(command) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer.endswith("\n"):
            raise SanitizerReport(self._ended(process))
        return answer[:-1].replace(_NEW_LINE, "\n")

    def close(self) -> None:
        """End the process after a final leak check. Raises SanitizerReport."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            if process.wait() != 0:
                raise SanitizerReport(self._ended(process))

    def _start(self) -> subprocess.Popen[str]:
        suppressions = f"suppressions={self._program.with_name('suppressions')}"
        environment = {**sanitizer_environment(), "LSAN_OPTIONS": f"{suppressions}:print_suppressions=0"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [str(self._program)],
            stdin=pipe,
            stdout=pipe,
            stderr=self._errors,
            text=True,
            errors="replace",
            env=environment,
        )
        return self._process

    def _ended(self, process: subprocess.Popen[str]) -> str:
        self._process = None
        status = process.wait()
        self._errors.seek(0)
        said = self._errors.read()
        self._errors.seek(0)
        self._errors.truncate()
        return f"exit status {status}: {said[:_SHOWN]}"
