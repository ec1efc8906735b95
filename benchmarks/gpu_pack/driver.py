"""The program that runs a pack, and its libraries."""

from __future__ import annotations

import shutil
from pathlib import Path

from compiler.device.cuda_libraries import cuda_libraries
from compiler.device.programs import COMPILE_OPTIONS, SOURCES, device_programs, tvm_link_options
from compiler.device.runtime_libraries import FFI_LIBRARY, RUNTIME_LIBRARY
from compiler.device.runtime_sources import compile_objects, include_folders, include_options
from compiler.device.third_party_objects import third_party_includes, third_party_objects
from compiler.support.cache import cached, key_of
from targets.cuda.target import CudaTarget

PROGRAM = "pack-driver"
_SOURCES = Path(__file__).with_name("cpp")
_PARTS = ("numbers.cc", "generator.cc", "entry.cc", "simulated.cc", "session.cc", "stages.cc", "child.cc", "results.cc")


def pack_driver(target: CudaTarget) -> Path:
    """Return a folder with the program, built once for the device's host processor.

    Raises: as `compiler.device.programs.device_programs`.
    """
    programs, third_party = device_programs(target), third_party_objects(target)
    contents = [path.read_bytes() for path in sorted(_SOURCES.glob("*.*"))]
    key = key_of([programs.name, *contents])

    def build(folder: Path) -> None:
        sources = {PROGRAM: [_SOURCES / each for each in (*_PARTS, "main.cc")]}
        headers = include_options([*include_folders(), *third_party_includes()])
        options = [*COMPILE_OPTIONS, "-I", str(SOURCES), "-I", str(_SOURCES), *headers]
        (object_file,) = compile_objects(target, sources, options, folder)
        linked: list[str | Path] = [object_file, programs / "library.o", *third_party, "-o", folder / PROGRAM]
        target.compiler().run([*linked, *tvm_link_options(programs)])
        object_file.unlink()

    return cached("pack-driver", f"{target.architecture}-{key}", build)


def write_programs(target: CudaTarget, output: Path) -> None:
    """Copy the program into `output`/bin and the libraries into `output`/lib."""
    programs = device_programs(target)
    for folder in ("bin", "lib"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(pack_driver(target) / PROGRAM, output / "bin")
    libraries = [programs / FFI_LIBRARY, programs / RUNTIME_LIBRARY]
    if not target.simulated:
        libraries += cuda_libraries(target)
    for library in libraries:
        shutil.copy(library, output / "lib")
