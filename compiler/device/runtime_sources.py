"""The engine's runtime, compiled from the sources that its wheels carry; for architectures without wheels.

Six headers that the wheels leave out lie in `third_party/tvm` (Apache License 2.0).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path

from compiler.device.cache import cached, key_of
from compiler.device.toolchain import compile_objects, include_folders, include_options
from compiler.errors import MissingDependencyError
from compiler.runtime.engine import tvm_ffi
from targets import Target

_HEADERS = Path(__file__).with_name("third_party") / "tvm"
_OPTIONS = (
    "-std=c++17",
    "-O1",  # what runs long is the module's own code
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-DTVM_FFI_USE_LIBBACKTRACE=0",
    "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0",
)
_CORE = (
    "cpu_device_api", "device_api", "file_utils", "logging", "module", "tensor", "thread_pool", "threading_backend",
    "timer", "workspace_pool", "const_loader_module", "memory/memory_manager",
    "vm/builtin", "vm/bytecode", "vm/executable", "vm/vm",
)  # fmt: skip
_EXTRA = (
    "env_c_api", "env_context", "json_parser", "json_writer", "library_module", "library_module_dynamic_lib",
    "library_module_system_lib", "module", "reflection_extra", "structural_equal", "structural_hash", "dataclass",
    "serialization", "structural_visit", "structural_mutate", "visit_error_context",
)  # fmt: skip


def build_shared_libraries(target: Target, ffi_library: str, runtime_library: str) -> Path:
    """A folder with both libraries for the target's architecture; built once, in about a minute and a half.

    Raises:
        MissingDependencyError: the installed engine carries no sources.
        targets.TargetError: the toolchain is missing or failed.
    """
    compiler = target.compiler()
    versions = [importlib.metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi")]
    key = key_of([target.architecture, *versions, compiler.version(), *_OPTIONS, *_CORE, *_EXTRA])

    def build(folder: Path) -> None:
        options = [*_OPTIONS, *include_options([_HEADERS / "include", *include_folders(), _engine() / "include"])]
        tree = _source_tree(folder / "tree")
        ffi = compile_objects(target, _ffi_sources(), options, folder)
        core = compile_objects(target, [tree / "src" / "runtime" / f"{name}.cc" for name in _CORE], options, folder)
        # Everything stays in: the functions register themselves by name.
        compiler.run(["-shared", "-s", *ffi, "-o", folder / ffi_library, "-pthread", "-ldl"])
        linked = [f"-L{folder}", "-ltvm_ffi", "-pthread", "-ldl"]
        compiler.run(["-shared", "-s", *core, "-o", folder / runtime_library, *linked])
        shutil.rmtree(folder / "tree")
        for each in (*ffi, *core):
            each.unlink()

    return cached("runtime", f"{target.architecture}-{key}", build)


def _engine() -> Path:
    spec = importlib.util.find_spec("tvm")
    for folder in spec.submodule_search_locations or () if spec else ():
        if (Path(folder) / "src" / "runtime").is_dir():
            return Path(folder)
    raise MissingDependencyError("the installed engine carries no runtime sources", "pip install apache-tvm")


def _source_tree(folder: Path) -> Path:
    """The runtime's sources with the headers beside them that they include by relative paths."""
    source = _engine() / "src" / "runtime"
    shutil.copytree(
        source, folder / "src" / "runtime", ignore=shutil.ignore_patterns("extra", "rpc", "cuda", "hexagon")
    )
    shutil.copytree(_HEADERS / "src" / "support", folder / "src" / "support")
    return folder


def _ffi_sources() -> list[Path]:
    sources = Path(tvm_ffi.libinfo.find_source_path()) / "src" / "ffi"
    plain = [path for path in sorted(sources.glob("*.cc")) if path.stem != "backtrace_win"]
    return [*plain, *(sources / "extra" / f"{name}.cc" for name in _EXTRA)]
