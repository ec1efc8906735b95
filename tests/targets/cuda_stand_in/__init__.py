"""A stand-in for NVIDIA's driver and runtime: what a CUDA module needs of a machine, on one without a device.

TVM's own CUDA runtime and the programs of a bundle run on it. Kernels are those of the simulator
(`targets.cuda.simulator`); their fatbins are read for the architectures that they serve. Memory of the device cannot be
touched from outside, and streams work as late as CUDA allows, so that a copy or a wait that is missing shows. What it
looks like is set by the environment (`device.h`).
"""

from __future__ import annotations

import importlib.metadata
import struct
from collections.abc import Iterator
from pathlib import Path

from targets.cuda.image import source_of
from targets.cuda.simulator import CudaSimulator, KernelText
from targets.toolchain import Compiler

DRIVER, RUNTIME = "libcuda.so.1", "libcudart.so.13"
_SOURCES = Path(__file__).parent
_FATBIN = struct.pack("<I", 0xBA55ED50)
_VERSION = "libcudart.so.13 { global: cuda*; local: *; };"


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime_api.h out of NVIDIA's Python package; None without it."""
    try:
        files = importlib.metadata.files("nvidia-cuda-runtime") or ()
    except importlib.metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())).parent for file in files if file.name == "cuda_runtime_api.h"]
    return found[0] if found else None


def build_libraries(compiler: Compiler, folder: Path) -> None:
    """libcuda.so.1 and libcudart.so.13 into a folder."""
    headers = cuda_headers()
    assert headers is not None
    options: list[str | Path] = ["-std=c++17", "-O1", "-fPIC", "-shared", "-isystem", headers]
    driver, runtime, version = folder / DRIVER, folder / RUNTIME, folder / "version"
    version.write_text(_VERSION, encoding="utf-8")
    name = f"-Wl,-soname,{DRIVER}"
    compiler.run([*options, name, _SOURCES / "device.cc", _SOURCES / "driver.cc", "-o", driver, "-ldl"])
    own = [f"-Wl,-soname,{RUNTIME}", f"-Wl,--version-script={version}", "-Wl,-rpath,$ORIGIN"]
    compiler.run([*options, *own, _SOURCES / "runtime.cc", driver, "-o", runtime])
    version.unlink()


def add_kernels(library: bytes, compiler: Compiler, folder: Path) -> None:
    """The kernels of a library, simulated, into the folder where the stand-in looks for them."""
    made = CudaSimulator(compiler).compiled(source_of(library), folder, _entry)
    (image,) = _images(library)
    made.rename(folder / f"{_digest(image):016x}.so")


def _images(library: bytes) -> Iterator[bytes]:
    """The fatbins in a library."""
    start = library.find(_FATBIN)
    while start >= 0:
        version, header, size = struct.unpack_from("<HHQ", library, start + 4)
        if version == 1 and header == 16 and start + header + size <= len(library):
            yield library[start : start + header + size]
        start = library.find(_FATBIN, start + 4)


def _digest(data: bytes) -> int:
    digest = 14695981039346656037  # FNV-1a, as in driver.cc
    for byte in data:
        digest = (digest ^ byte) * 1099511628211 & (1 << 64) - 1
    return digest


def _entry(kernel: KernelText) -> str:
    kinds = "".join("p" if each.endswith("*") else "v" for each in kernel.types)
    sizes = ", ".join(["0", *(f"sizeof({each})" for each in kernel.types)])
    values = ", ".join(f"*({each}*)parameters[{index}]" for index, each in enumerate(kernel.types))
    waits = "true" if kernel.synchronizes else "false"
    return (
        f'extern "C" const char stand_in_kinds_{kernel.name}[] = "{kinds}";\n'
        f"static const uint8_t sizes_of_{kernel.name}[] = {{{sizes}}};\n"
        f'extern "C" const uint8_t* const stand_in_bytes_{kernel.name};\n'
        f"const uint8_t* const stand_in_bytes_{kernel.name} = sizes_of_{kernel.name} + 1;\n"
        f'extern "C" void stand_in_run_{kernel.name}(const int64_t* sizes, void** parameters) {{\n'
        "    simulation::Launch launch{{sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]}, sizes[6]};\n"
        f"    simulation::run(launch, {waits}, [&] {{ {kernel.name}({values}); }});\n}}\n"
    )
