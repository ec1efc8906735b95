"""`bundle`: writes a folder with everything that a device needs to run a module without Python.

The licenses of a bundle's third-party and own code: Tensorwright, TVM and its FFI, libsodium, Wuffs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Artifact, write_artifact
from compiler.artifact.processing import takes_images
from compiler.artifact.storage import read_mapped, write_atomically
from compiler.device.cuda_libraries import cuda_libraries, cuda_license
from compiler.device.programs import PROGRAMS, SHARED_LIBRARY, SOURCES, device_programs
from compiler.device.runtime_libraries import FFI_LIBRARY, RUNTIME_LIBRARY
from compiler.device.third_party_objects import third_party_licenses
from compiler.errors import MissingDependencyError, OptionError, StorageError
from compiler.runtime.device import CUDA_RUNTIME_DISTRIBUTION
from targets import Target

MODULE = "model.twm"
HEADER = "tensorwright.h"
EXAMPLE = "example.c"

# Bytes of libonnxruntime.so in the wheels of version 1.32.0 on PyPI, by architecture.
ONNX_RUNTIME_BYTES: Mapping[str, int] = {"x86_64": 34824680, "aarch64": 27165936}

_MAKEFILE = """# make: builds the example against the library of this folder.
# With the cross compiler where there is one (so not on the device).
ifeq ($(origin CC),default)
CC := $(or $(shell command -v {cc}),cc)
endif

example: example.c
\t$(CC) -O2 -Iinclude example.c -o example -Llib -ltensorwright -ltvm_ffi -Wl,-rpath,'$$ORIGIN/lib' -Wl,-rpath-link,lib
"""

_README = """{name}, for {target} ({architecture})

    bin/tensorwright-run model.twm --verify --runs 20    run the stored example, compare, measure
    bin/tensorwright-run model.twm {given}
    bin/tensorwright-server 9090                         wait for `tensorwright push`, on 127.0.0.1; see below
    make && ./example model.twm                          a program of your own, against include/tensorwright.h

A server for others to reach, encrypted, with keys for both sides (the .pub files go to the other side):
    bin/tensorwright-server --new-key device.pem         here
    tensorwright key new laptop.pem --kind connection    there
    bin/tensorwright-server 9090 --listen 0.0.0.0 --key device.pem --client-key laptop.pem.pub
Runner and server refuse modules that none of your keys signed with --trusted-key release.pem.pub.

{device}Files: model.twm, the module; lib/, the runtime and the library behind tensorwright.h; bin/, programs;
example.c; licenses/.
Needed on the device: Linux with glibc {glibc} or newer and libstdc++{driver}. No Python.
"""

_DEVICE_README = """On the GPU, timed by CUDA events with and without a CUDA graph, and kernel by kernel:
    bin/tensorwright-run model.twm --verify --runs 50 --graph --kernels [--json]

"""
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\b")
_DRIVER = ", and NVIDIA's driver 580 or newer"


@dataclass(frozen=True)
class Bundle:
    """The files written, with sizes in bytes (paths relative to the folder), and those needed at run time."""

    folder: Path
    files: Mapping[str, int]
    runtime_bytes: int
    onnx_runtime_bytes: int | None


def write_bundle(artifact: Artifact, target: Target, output: Path, *, file: Path | None = None) -> Bundle:
    """Write a module, the runtime's libraries, programs, the C header and an example into a new folder; for a
    microcontroller only C sources.

    Args:
        file: the module's file, copied unchanged so that signatures remain valid; None: write a new, unsigned one.

    Raises:
        OptionError: the folder exists and is not empty, the module is for another architecture than the target, or it
            calls an accelerator.
        StorageError: it cannot be written.
        targets.TargetError: the toolchain is missing or failed.
        MissingDependencyError: the runtime libraries for the architecture are not available.
    """
    check_architecture(artifact, target)
    check_accelerator(artifact, target)
    check_has_machine_code(artifact)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OptionError(f"{output} exists and is not an empty folder", "give a new one")
    sources = target.c_sources(
        artifact.manifest.model_name, artifact.manifest.target.details, artifact.parameters.values()
    )
    if sources is not None:
        return _written_sources(sources, output)
    programs = device_programs(target)
    try:
        _write(artifact, target, programs, output)
        write_module(artifact, file, output / MODULE)
    except (OSError, StorageError) as error:
        raise _incomplete(output, error) from error
    files = {str(path.relative_to(output)): path.stat().st_size for path in sorted(output.rglob("*")) if path.is_file()}
    runtime = sum(size for name, size in files.items() if name.startswith("lib/lib"))
    return Bundle(output, files, runtime, ONNX_RUNTIME_BYTES.get(target.architecture))


def _incomplete(output: Path, error: OSError | StorageError) -> StorageError:
    """Remove a partly written folder, so that a second attempt finds it empty, and return the error to raise."""
    shutil.rmtree(output, ignore_errors=True)
    reason = error.message if isinstance(error, StorageError) else str(error)
    return StorageError(f"{output} cannot be written: {reason}", "free space, or give another folder")


def _written_sources(sources: Mapping[str, str], output: Path) -> Bundle:
    """A folder of C sources, which need no runtime."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in sources.items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _incomplete(output, error) from error
    return Bundle(output, {name: len(text.encode()) for name, text in sources.items()}, 0, None)


def check_architecture(artifact: Artifact, target: Target) -> None:
    """Raise OptionError unless a module is for the target's architecture."""
    if artifact.manifest.target.architecture != target.architecture:
        raise OptionError(
            f"the module is for {artifact.manifest.target.architecture}, and target {target.name!r} is "
            f"{target.architecture}",
            f"compile it with --target {target.name}",
        )


def check_accelerator(artifact: Artifact, target: Target) -> None:
    """Raise OptionError for a module that calls an accelerator, whose functions need Python.
    Targets that generate C sources have their own checks."""
    partition = artifact.manifest.target.details.get("partition")
    if isinstance(partition, dict) and partition.get("claimed") and type(target).c_sources is Target.c_sources:
        raise OptionError(
            f"the module calls the accelerator of target {target.name!r}, whose functions are Python's, and the "
            "programs of a bundle have no Python",
            "load the module in Python on the device, or compile the model for its CPU only",
        )


def check_has_machine_code(artifact: Artifact) -> None:
    """Raise OptionError for a module whose kernels can only run in the compiler's simulator."""
    device = artifact.manifest.target.details.get("device")
    if isinstance(device, dict) and device.get("simulated"):
        raise OptionError(
            f"the module (target {artifact.manifest.target.name!r}) holds no machine code for a GPU",
            "compile it for one",
        )


def _write(artifact: Artifact, target: Target, programs: Path, output: Path) -> None:
    for folder in ("bin", "lib", "include"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    cuda = cuda_libraries(target)
    for library in (*(programs / name for name in (FFI_LIBRARY, RUNTIME_LIBRARY, SHARED_LIBRARY)), *cuda):
        shutil.copy(library, output / "lib")
    for program in PROGRAMS:
        shutil.copy(programs / program, output / "bin")
    shutil.copy(SOURCES / HEADER, output / "include")
    shutil.copy(SOURCES / EXAMPLE, output)
    compiler = target.compiler().command[0].replace("g++", "gcc").replace("c++", "cc")
    (output / "Makefile").write_text(_MAKEFILE.format(cc=compiler), encoding="utf-8")
    described = {"name": artifact.manifest.model_name, "target": target.name, "architecture": target.architecture}
    described |= {
        "device": _DEVICE_README if cuda else "",
        "driver": _DRIVER if cuda else "",
        "given": "cat.jpg" if takes_images(artifact) else "--inputs in.safetensors --outputs out.safetensors",
        "glibc": glibc_of(output),
    }
    texts = {**licenses(), **({f"{CUDA_RUNTIME_DISTRIBUTION}/LICENSE": cuda_license()} if cuda else {})}
    for name, text in texts.items():
        path = output / "licenses" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (output / "README").write_text(_README.format(**described), encoding="utf-8")


def glibc_of(folder: Path) -> str:
    """The oldest glibc ("2.34") that the programs and libraries in a folder run on: the newest version among their
    symbols."""
    return glibc_of_files([path for part in ("bin", "lib") for path in sorted((folder / part).iterdir())])


def glibc_of_files(paths: Iterable[Path]) -> str:
    """The oldest glibc that these programs and libraries run on."""
    return f"2.{max(int(minor) for path in paths for minor in _GLIBC.findall(path.read_bytes()))}"


def write_module(artifact: Artifact, file: Path | None, output: Path) -> None:
    """Copy the module's file, including signatures, or write a new one if there is none. Raises StorageError if it
    cannot be written."""
    if file is None:
        write_artifact(artifact, output)
    else:
        write_atomically(output, [read_mapped(file)])


_DISTRIBUTIONS = ("tensorwright", "apache-tvm", "apache-tvm-ffi")
_NAMES = ("LICENSE", "NOTICE")
# Third parties whose code is in these libraries: half-precision conversion, error traces.
_FURTHER = {
    "apache-tvm": ("tvm/licenses/LICENSE.builtin_fp16.txt",),
    "apache-tvm-ffi": ("tvm_ffi/3rdparty/libbacktrace/LICENSE",),
}
_SOURCE_TREE = Path(__file__).resolve().parents[2]


def licenses() -> Mapping[str, str]:
    """Texts by "project/file name". Raises MissingDependencyError if a distribution is installed without its license,
    or a library's source is not available."""
    texts: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        texts.update({f"{name}/{file}": _read(path) for file, path in _files(name).items()})
        if f"{name}/LICENSE" not in texts:
            raise MissingDependencyError(f"{name} is installed without its license", f"pip install --force {name}")
    return {**texts, **{name: _read(path) for name, path in third_party_licenses().items()}}


def licenses_text() -> str:
    """All licenses as one text. Raises as `licenses`."""
    return "\n".join(f"{'=' * 20} {name}\n\n{text.strip()}\n" for name, text in licenses().items())


def _files(distribution: str) -> dict[str, Path]:
    """Files of a distribution by their names in a bundle."""
    files: dict[str, Path] = {}
    for file in importlib.metadata.files(distribution) or ():
        path = Path(str(file.locate()))
        own = file.name in _NAMES and file.parent.parent.suffix == ".dist-info"
        if (own or file.as_posix() in _FURTHER.get(distribution, ())) and path.is_file():
            files[file.name if own else file.as_posix().partition("/")[2].removeprefix("licenses/")] = path
    if distribution == "apache-tvm" and "NOTICE" not in files:
        files["NOTICE"] = _beside_package("tvm", "NOTICE")
    if distribution == "tensorwright" and "LICENSE" not in files:
        files["LICENSE"] = _SOURCE_TREE / "LICENSE"  # not installed: run from a source tree
    return {name: path for name, path in files.items() if path.is_file()}


def _beside_package(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / name


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
