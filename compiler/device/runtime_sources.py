"""TVM's runtime, compiled from the sources in its wheels: for statically linked programs, and for architectures without
wheels.

The headers missing from the wheels are in `third_party/tvm` (Apache License 2.0).

Also compiles C++ for a target.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from compiler.errors import MissingDependencyError
from compiler.runtime.tvm_runtime import tvm_ffi
from compiler.support.cache import cached, key_of
from targets import Target

# The object files that every program needs; RPC and the shared library loader are only in shared libraries.
FFI_OBJECT, RUNTIME_OBJECT = "ffi.o", "runtime.o"
# Appended to the options of all C and C++ code for devices, like "-O0 -g" to debug it.
EXTRA_OPTIONS = tuple(shlex.split(os.environ.get("TENSORWRIGHT_CXXFLAGS", "")))
_HEADERS = Path(__file__).with_name("third_party") / "tvm"
_OPTIONS = (
    "-std=c++17",
    "-Os",  # most of the run time is spent in the module's own code
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-DTVM_FFI_USE_LIBBACKTRACE=0",
    "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",
    *EXTRA_OPTIONS,
)
_CORE = (
    "cpu_device_api", "device_api", "file_utils", "logging", "module", "tensor", "thread_pool", "threading_backend",
    "timer", "workspace_pool", "const_loader_module", "memory/memory_manager",
    "vm/builtin", "vm/bytecode", "vm/executable", "vm/vm",
)  # fmt: skip
_REMOTE = ("channel", "device_api", "endpoint", "event_impl", "local_session", "module", "server_env", "session",
           "socket_impl")  # fmt: skip
# Structural comparison, copying and printing of objects is omitted: it takes longer to compile than all of the rest.
_EXTRA = ("env_c_api", "env_context", "json_parser", "json_writer", "library_module", "module")


def build_shared_libraries(target: Target, ffi_library: str, runtime_library: str) -> Path:
    """A folder with both libraries for the target's architecture.

    Raises as `runtime_objects`.
    """
    objects = runtime_objects(target)

    def build(folder: Path) -> None:
        loader, remote = _compile(target, ("loader", "remote"), folder)
        ffi, core = objects / FFI_OBJECT, objects / RUNTIME_OBJECT
        run = target.compiler().run
        run(["-shared", "-s", ffi, loader, "-o", folder / ffi_library, "-pthread", "-ldl"])
        run(["-shared", "-s", core, remote, "-o", folder / runtime_library, f"-L{folder}", "-ltvm_ffi", "-pthread"])

    return cached("runtime", objects.name, build)


def runtime_objects(target: Target) -> Path:
    """A folder with the object files for the target's architecture; compiled once, in about 40 s of processor time.
    Raises MissingDependencyError if the installed TVM contains no sources, and targets.TargetError if the toolchain is
    missing or failed."""
    versions = [importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
    compiler = target.compiler()
    key = key_of([target.architecture, *versions, compiler.version(), *_OPTIONS, *_CORE, *_REMOTE, *_EXTRA])

    def build(folder: Path) -> None:
        _compile(target, ("ffi", "runtime"), folder)

    return cached("runtime-objects", f"{target.architecture}-{key}", build)


def _compile(target: Target, names: Sequence[str], folder: Path) -> list[Path]:
    """Some of the object files, in a folder."""
    options = [*_OPTIONS, *include_options([_HEADERS / "include", *include_folders(), _tvm_sources() / "include"])]
    tree = _source_tree(folder / "tree")
    sources = _sources(tree / "src" / "runtime")
    made = compile_objects(target, {name: sources[name] for name in names}, options, folder)
    shutil.rmtree(tree)
    return made


def _tvm_sources() -> Path:
    spec = importlib.util.find_spec("tvm")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "src" / "runtime").is_dir():
            return Path(folder)
    raise MissingDependencyError("the installed TVM carries no runtime sources", "pip install apache-tvm")


def _source_tree(folder: Path) -> Path:
    """The runtime's sources, next to the headers that they include by relative paths."""
    source = _tvm_sources() / "src" / "runtime"
    shutil.copytree(source, folder / "src" / "runtime", ignore=shutil.ignore_patterns("extra", "cuda", "hexagon"))
    shutil.copytree(_HEADERS / "src" / "support", folder / "src" / "support")
    return folder


def ffi_source_folder() -> Path:
    """The sources of the foreign function interface in its wheel."""
    return Path(tvm_ffi.libinfo.find_source_path()) / "src" / "ffi"


def _sources(runtime: Path) -> dict[str, list[Path]]:
    """The sources, by the name of the object file."""
    interface = ffi_source_folder()
    plain = [path for path in sorted(interface.glob("*.cc")) if path.stem != "backtrace_win"]
    extra = [interface / "extra" / f"{name}.cc" for name in _EXTRA]
    return {
        "ffi": [*plain, *extra],
        "loader": [interface / "extra" / "library_module_dynamic_lib.cc"],
        "runtime": [runtime / f"{name}.cc" for name in _CORE],
        "remote": [runtime / "rpc" / f"rpc_{name}.cc" for name in _REMOTE],
    }


def include_folders() -> tuple[Path, ...]:
    """The headers that the programs need: those of TVM's foreign function interface, and DLPack's."""
    return Path(tvm_ffi.libinfo.find_include_path()), Path(tvm_ffi.libinfo.find_dlpack_include_path())


def include_options(folders: Sequence[Path]) -> list[str]:
    """Options that add these folders as system headers, for which warnings are suppressed."""
    return [part for folder in folders for part in ("-isystem", str(folder))]


def compile_objects(
    target: Target, groups: Mapping[str, Sequence[Path]], options: Sequence[str], folder: Path
) -> list[Path]:
    """Compile object files into a folder, in the order of their names in `groups`, each from several C++ sources; two
    at a time. Sources are compiled together because most of the work is in the headers that they share. Raises
    targets.TargetError if no compiler for the target, or it failed."""
    compiler = target.compiler()

    def one(name: str) -> Path:
        together, object_file = folder / f"{name}.cc", folder / f"{name}.o"
        together.write_text("".join(f'#include "{source}"\n' for source in groups[name]), encoding="utf-8")
        compiler.run([*options, "-c", together, "-o", object_file])
        together.unlink()
        return object_file

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, groups))
