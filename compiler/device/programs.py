"""Builds the C++ programs for a target, and caches them: a runner, a server, and their library."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from compiler.device.runtime_libraries import runtime_libraries
from compiler.device.runtime_sources import EXTRA_OPTIONS, compile_objects, include_folders, include_options
from compiler.device.third_party_objects import third_party_includes, third_party_objects
from compiler.support.cache import cached, key_of
from targets import Target

SOURCES = Path(__file__).with_name("cpp")
# Code that reads files and checks inputs, which needs only TVM's FFI.
CHECKING_SOURCES = (
    "error.cc",
    "file.cc",
    "formula.cc",
    "checked_json.cc",
    "record_schema.cc",
    "dtypes.cc",
    "manifest.cc",
    "sha256_blocks.cc",
    "sha256.cc",
    "artifact.cc",
    "tensors.cc",
    "keys.cc",
    "signature.cc",
    "requirements.cc",
    "elf_check.cc",
)
# Code that opens shared libraries: the module's code, and a GPU's driver.
LOADING_SOURCES = ("library_system.cc", "cuda_driver.cc", "cuda_runtime.cc", "cuda_device.cc")
# Code that reads image files.
IMAGE_SOURCES = ("image.cc",)
LIBRARY_SOURCES = (
    *CHECKING_SOURCES,
    "threads.cc",
    "usable_cores.cc",
    "processor.cc",
    "device.cc",
    "elements.cc",
    "parameter_store.cc",
    "pool_bound.cc",
    "module.cc",
    "session.cc",
    "report.cc",
    *IMAGE_SOURCES,
    "c_api.cc",
    *LOADING_SOURCES,
)
# Separate from the others: it declares the TVM functions it calls, since it is compiled for Python without TVM's
# headers.
THREAD_POOL_SOURCES = ("thread_pool.c",)
SHARED_LIBRARY = "libtensorwright.so"
NO_LINKED_MODULE = "linked_none.cc"
# Code of the runner: it reads recordings and texts, and images through `prediction.cc`.
RUN_SOURCES = ("processing.cc", "audio.cc", "speech.cc", "text/embedder.cc", "run.cc")
TOKENIZER_SOURCES = tuple(
    f"text/{name}.cc"
    for name in (
        *("reader", "pattern", "normal", "character_steps", "steps", "decoder"),
        *("vocabulary", "bpe", "unigram", "word_piece", "model", "tokenizer"),
    )
)
PROGRAMS = {
    "tensorwright-run": ("prediction.cc", *TOKENIZER_SOURCES, *RUN_SOURCES, "run_main.cc"),
    "tensorwright-server": (
        "noise.cc",
        "wire.cc",
        "pump.cc",
        "storage.cc",
        "device_session.cc",
        "visitor.cc",
        "server.cc",
    ),
}
TUNING_PROGRAM = "run"
_TUNING_SOURCES = ("tune_plan.cc", "tune_kernels.cc", "tune_main.cc")
COMPILE_OPTIONS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-DSODIUM_STATIC",
    f'-DTENSORWRIGHT_VERSION="{importlib.metadata.version("tensorwright")}"',
    f'-DTENSORWRIGHT_TVM_VERSION="{importlib.metadata.version("apache-tvm")}"',
    *EXTRA_OPTIONS,
)
LINK_OPTIONS = ("-s", "-Wl,--gc-sections", "-Wl,-rpath,$ORIGIN:$ORIGIN/../lib")


def device_programs(target: Target) -> Path:
    """A folder with the programs, the library behind `tensorwright.h`, their objects, and the runtime's libraries.

    Raises:
        targets.TargetError: no compiler for the target, or it failed.
        MissingDependencyError: the runtime libraries for it, or the source of a library, are not available.
    """
    libraries, third_party = runtime_libraries(target), third_party_objects(target)
    compiler = target.compiler()
    contents = [path.read_bytes() for path in source_files()]
    version = importlib.metadata.version("apache-tvm-ffi")
    versions = [version, compiler.version(), *(path.parent.name for path in third_party)]
    key = key_of([target.architecture, *versions, *COMPILE_OPTIONS, *LINK_OPTIONS, *contents])
    build = partial(_build, target, libraries, third_party)
    return cached("device", f"{target.architecture}-{key}", build)


def source_files() -> list[Path]:
    """All C++ sources and headers, sorted."""
    return sorted(path for path in SOURCES.rglob("*.*") if path.is_file())


def _build(target: Target, libraries: Sequence[Path], third_party: Sequence[Path], folder: Path) -> None:
    for library in libraries:
        shutil.copy(library, folder)
    shared_sources = {"library": [*LIBRARY_SOURCES, NO_LINKED_MODULE], "thread_pool": THREAD_POOL_SOURCES}
    groups: dict[str, Sequence[str]] = {**shared_sources, **PROGRAMS}
    sources = {name: [SOURCES / each for each in parts] for name, parts in groups.items()}
    options = [*COMPILE_OPTIONS, *include_options([*include_folders(), *third_party_includes()])]
    objects = compile_objects(target, sources, options, folder)
    linked = [*objects[: len(shared_sources)], *third_party]
    options = tvm_link_options(folder)
    target.compiler().run(["-shared", *linked, "-o", folder / SHARED_LIBRARY, *options])
    for program in objects[len(shared_sources) :]:
        target.compiler().run([program, *linked, "-o", folder / program.stem, *options])


def tuning_program(target: Target) -> Path:
    """A folder with the program that measures a pack (`compiler.tuning.pack`), with libraries in lib/ next to it.

    Raises as `device_programs`.
    """
    programs, third_party = device_programs(target), third_party_objects(target)

    def build(folder: Path) -> None:
        options = [*COMPILE_OPTIONS, *include_options([*include_folders(), *third_party_includes()])]
        sources = {TUNING_PROGRAM: [SOURCES / name for name in _TUNING_SOURCES]}
        (object_file,) = compile_objects(target, sources, options, folder)
        library = [programs / "library.o", programs / "thread_pool.o", *third_party]
        linked: list[str | Path] = [object_file, *library, "-o", folder / TUNING_PROGRAM]
        target.compiler().run([*linked, *tvm_link_options(programs), "-Wl,-rpath,$ORIGIN/lib"])
        object_file.unlink()

    return cached("tuning-program", programs.name, build)


def tvm_link_options(libraries: Path) -> list[str]:
    """Options that link a program with TVM's libraries in a folder, to be found next to it or in ../lib."""
    # No symbol refers to the runtime, which registers itself at load.
    return [f"-L{libraries}", "-ltvm_ffi", "-Wl,--no-as-needed", "-ltvm_runtime", "-pthread", "-ldl", *LINK_OPTIONS]
