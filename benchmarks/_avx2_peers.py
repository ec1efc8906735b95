"""Other runtimes limited to AVX2, for comparison with modules compiled for processors without AVX-512.

oneDNN, in OpenVINO, reads ONEDNN_MAX_CPU_ISA. The other kernels of OpenVINO and those of ONNX Runtime (MLAS) have no
such setting: they query the processor, and with the instruction XGETBV the operating system's support of 512-bit
registers. So both packages are copied, and XGETBV in their libraries is replaced by an instruction that answers no.
ONNX Runtime still uses AVX-VNNI if the processor has it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from benchmarks._models import cache_folder
from schedules.machine import Machine

_XGETBV = bytes((0x0F, 0x01, 0xD0))
_ANSWER = bytes((0xB0, 0x07, 0x90))
"""`mov al, 7; nop`, as long: of the kinds of registers, bits 0 to 2 (x87, SSE, AVX) are set, 5 to 7 (AVX-512) not."""
_PACKAGES = ("onnxruntime", "openvino")
_UNUSED = ("quantization", "transformers", "datasets", "*intel_gpu_plugin*", "*intel_npu_plugin*")


def limits(machine: Machine) -> Mapping[str, str]:
    """Return environment variables that limit other runtimes to AVX2 if the described x86-64 machine has no more.

    Raises RuntimeError if a runtime's libraries do not use XGETBV.
    """
    if machine.architecture != "x86_64" or machine.vector_bits >= 512:
        return {}
    folders = [str(_limited(package).resolve()) for package in _PACKAGES]
    isa = "AVX2_VNNI" if machine.has("avxvnni") else "AVX2"
    path = os.pathsep.join(filter(None, [*folders, os.environ.get("PYTHONPATH", "")]))
    return {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": path}


def _limited(package: str) -> Path:
    """Return a folder to import the limited package from; created once per version."""
    folder = cache_folder() / f"{package}-{version(package)}-avx2"
    if folder.exists():
        return folder
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    being_made = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.copytree(spec.submodule_search_locations[0], being_made / package, ignore=shutil.ignore_patterns(*_UNUSED))
    places = sum(_answer_for(library) for library in sorted(being_made.rglob("*.so*")))
    if places == 0:
        raise RuntimeError(f"{package} cannot be held to AVX2: its libraries do not ask for the system's registers")
    being_made.rename(folder)
    return folder


def _answer_for(library: Path) -> int:
    """Replace the instruction in a library. Returns the number of replacements."""
    code = library.read_bytes()
    if places := code.count(_XGETBV):
        library.write_bytes(code.replace(_XGETBV, _ANSWER))
    return places
