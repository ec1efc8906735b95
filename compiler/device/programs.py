"""The C++ programs of a device, built for a target once and kept: a runner, a server, and the library below them."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiler.device.cache import cached, key_of
from compiler.device.runtime_libraries import runtime_libraries
from compiler.runtime.engine import tvm_ffi
from targets import Target

SOURCES = Path(__file__).with_name("cpp")
LIBRARY_SOURCES = ("artifact.cc", "tensors.cc", "module.cc", "sha256.cc", "c_api.cc")
SHARED_LIBRARY = "libtensorwright.so"
NO_LINKED_MODULE = "linked_none.cc"
PROGRAMS = {"tensorwright-run": "run.cc", "tensorwright-server": "server.cc"}
COMPILE_OPTIONS = ("-std=c++17", "-O2", "-fPIC", "-ffunction-sections", "-fdata-sections")
LINK_OPTIONS = ("-s", "-Wl,--gc-sections", "-Wl,-rpath,$ORIGIN:$ORIGIN/../lib")


def include_folders() -> tuple[Path, ...]:
    """The headers that the programs need: those of the engine's foreign function interface, and DLPack's."""
    return Path(tvm_ffi.libinfo.find_include_path()), Path(tvm_ffi.libinfo.find_dlpack_include_path())


def include_options(folders: Sequence[Path]) -> list[str]:
    """As system headers, whose warnings are not ours."""
    return [part for folder in folders for part in ("-isystem", str(folder))]


def device_programs(target: Target) -> Path:
    """A folder with the programs, the library behind `tensorwright.h`, their objects, and the runtime's libraries.

    Raises:
        targets.TargetError: no compiler for the target, or it failed.
        MissingDependencyError: the runtime's libraries for it are not to be had.
    """
    libraries = runtime_libraries(target)
    compiler = target.compiler()
    contents = [path.read_bytes() for path in sorted(SOURCES.glob("*.*"))]
    version = importlib.metadata.version("apache-tvm-ffi")
    key = key_of([target.architecture, version, compiler.version(), *COMPILE_OPTIONS, *LINK_OPTIONS, *contents])
    return cached("device", f"{target.architecture}-{key}", lambda folder: _build(target, libraries, folder))


def compile_objects(target: Target, sources: Sequence[Path], options: Sequence[str], folder: Path) -> list[Path]:
    """Object files of C++ sources, in their order; two are compiled at a time.

    Raises:
        targets.TargetError: no compiler for the target, or it failed.
    """
    compiler = target.compiler()

    def one(source: Path) -> Path:
        made = folder / f"{source.parent.name}_{source.stem}.o"
        compiler.run([*options, "-c", source, "-o", made])
        return made

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, sources))


def _build(target: Target, libraries: Sequence[Path], folder: Path) -> None:
    for library in libraries:
        shutil.copy(library, folder)
    names = [*LIBRARY_SOURCES, NO_LINKED_MODULE, *PROGRAMS.values()]
    options = [*COMPILE_OPTIONS, *include_options(include_folders())]
    made = dict(zip(names, compile_objects(target, [SOURCES / name for name in names], options, folder), strict=True))
    shared = [made[name] for name in (*LIBRARY_SOURCES, NO_LINKED_MODULE)]
    options = engine_link_options(folder)
    target.compiler().run(["-shared", *shared, "-o", folder / SHARED_LIBRARY, *options])
    for program, source in PROGRAMS.items():
        target.compiler().run([made[source], *shared, "-o", folder / program, *options])


def engine_link_options(libraries: Path) -> list[str]:
    """Options that link a program with the engine's libraries in a folder, to be found beside it or in ../lib."""
    # Nothing refers to the runtime by name: it registers itself when it is loaded.
    return [f"-L{libraries}", "-ltvm_ffi", "-Wl,--no-as-needed", "-ltvm_runtime", "-pthread", "-ldl", *LINK_OPTIONS]
