"""`bundle --triton`: a folder from which Triton Inference Server serves a module.

`models/` is a model repository, and `backends/tensorwright/` contains the sources of the backend for `make`. Another
module is added to the same folder; a module of the same name becomes its next version.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Artifact, Manifest, TensorDescription
from compiler.artifact.storage import write_atomically
from compiler.device.bundle import (
    HEADER,
    MODULE,
    check_accelerator,
    check_architecture,
    check_has_machine_code,
    glibc_of_files,
    licenses,
    write_module,
)
from compiler.device.programs import SHARED_LIBRARY, SOURCES, device_programs
from compiler.device.runtime_libraries import FFI_LIBRARY, RUNTIME_LIBRARY
from compiler.errors import IncompatibleArtifactError, OptionError, StorageError
from compiler.runtime import Module
from compiler.serving.batching.layout import find_layout
from targets import Target
from targets.processors import usable_processors

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
BACKEND = "tensorwright"


def configuration_text(name: str, manifest: Manifest, max_rows: int, instances: int) -> str:
    """Generate the text of `config.pbtxt`. Raises OptionError if Triton has no name for an element type.

    Args:
        name: name of the model in Triton.
        max_rows: maximum rows per batch; 0: no batching.
        instances: number of concurrent runs.
    """
    lines = [
        f"name: {_quoted(name)}",
        f"backend: {_quoted(BACKEND)}",
        f"max_batch_size: {max_rows}",
        *_tensors("input", manifest.inputs, max_rows > 0),
        *_tensors("output", manifest.outputs, max_rows > 0),
        f"instance_group [ {{ count: {instances} kind: KIND_CPU }} ]",
    ]
    if max_rows:
        # A run processes the requests that are queued when it begins, and does not wait.
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Sequence[TensorDescription], batched: bool) -> list[str]:
    described = [_tensor(each, batched) for each in tensors]
    return [f"{kind} [", ",\n".join(described), "]"] if described else []


def _tensor(tensor: TensorDescription, batched: bool) -> str:
    if tensor.dtype not in TYPES:
        raise OptionError(f"Triton has no element type {tensor.dtype}, which {tensor.name!r} has")
    sizes = [str(size) if isinstance(size, int) else "-1" for size in tensor.shape[batched:]]
    # Triton has no tensors without dimensions: clients send and receive one of size 1.
    shape = f"dims: [ {', '.join(sizes)} ]" if sizes else "dims: [ 1 ] reshape: { shape: [ ] }"
    return f"  {{ name: {_quoted(tensor.name)} data_type: {TYPES[tensor.dtype]} {shape} }}"


def _quoted(text: str) -> str:
    """Quote a string for protobuf's text format."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


BACKEND_SOURCE = "backend.cc"
BACKEND_LIBRARY = f"libtriton_{BACKEND}.so"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_DEFAULT_ROWS = 32

# The public headers of Triton's backend interface, version 1.19 (supported by release 24.10 and newer).
_HEADERS_COMMIT = "73aad7c3348d040c7087d57837d75822c488495e"
_HEADERS = {
    "tritonbackend.h": "4bdeb7c26660808cd94203170177b1df32916b3af15e3cfc794e03cba12fb476",
    "tritonserver.h": "b92b2bbfef2c97e1fc92ba926fb574114c5168c7bb352ca2368717f8e0165b71",
}

_MAKEFILE = """# make: builds the backend, for Triton of release 24.10 or newer; its public headers are downloaded and
# checked. make TRITON_HEADERS=DIR takes those in a copy of include/ of github.com/triton-inference-server/core.
ifeq ($(origin CXX),default)
CXX := $(or $(shell command -v {compiler}),c++)
endif
TRITON_HEADERS ?= triton
URL := https://raw.githubusercontent.com/triton-inference-server/core/{commit}/include/triton/core

{library}: {source} Makefile tensorwright.h $(TRITON_HEADERS)/triton/core/tritonbackend.h
\t$(CXX) -std=c++17 -O2 -fPIC -shared -I. -I$(TRITON_HEADERS) $< -o $@ \\
\t    -L. -ltensorwright -Wl,-rpath,'$$ORIGIN' -Wl,--allow-shlib-undefined

triton/triton/core/tritonbackend.h:
\tmkdir -p triton/triton/core
\tcurl -fsSL $(URL)/tritonserver.h -o triton/triton/core/tritonserver.h
\tcurl -fsSL $(URL)/tritonbackend.h -o $@.new
\techo "{tritonserver.h}  triton/triton/core/tritonserver.h" | sha256sum -c -
\techo "{tritonbackend.h}  $@.new" | sha256sum -c -
\tmv $@.new $@
"""

_README = """Modules for Triton Inference Server 24.10 or newer.

    make -C backends/{backend}           once: builds the backend (needs a C++ compiler, and curl)
    tritonserver --model-repository=models --backend-directory=backends

In NVIDIA's container, which has neither Python packages of ours nor needs any:
    docker run --rm -v "$PWD":/serve -p 8000-8002:8000-8002 nvcr.io/nvidia/tritonserver:24.10-py3 \\
        tritonserver --model-repository=/serve/models --backend-directory=/serve/backends

models/NAME/config.pbtxt says how many runs compute at a time (instance_group) and how many rows are put together at
most (max_batch_size); change both freely. A run uses the threads that the module was compiled for; TVM_NUM_THREADS=N
sets them for all. With TENSORWRIGHT_TRUSTED_KEYS=release.pem.pub only modules are loaded that this key signed.
Needed: Linux ({architecture}) with glibc {glibc} or newer and libstdc++.
"""


@dataclass(frozen=True)
class TritonOptions:
    """Options of a module served by Triton.

    Attributes:
        name: name of the model; None: the name of its file.
        max_batch_size: maximum rows per batch; 0: requests run one by one; None: 32 if runs show that the module's rows
            are independent of each other, else 0.
        instances: number of concurrent runs; None: as many as this machine's processors have room for.
    """

    name: str | None = None
    max_batch_size: int | None = None
    instances: int | None = None


@dataclass(frozen=True)
class TritonRepository:
    """A written model repository.

    Attributes:
        folder: folder with `models/` and `backends/`.
        name, version: name and version of the model in it.
        max_batch_size, instances: values in its configuration.
    """

    folder: Path
    name: str
    version: int
    max_batch_size: int
    instances: int


def write_triton_repository(
    artifact: Artifact, file: Path, target: Target, output: Path, options: TritonOptions | None = None
) -> TritonRepository:
    """Write a module into a folder for Triton, with the backend's source and the libraries that it needs.

    Args:
        file: the module's file, copied unchanged, so that signatures stay valid.

    Raises:
        OptionError: the module is for an architecture other than the target's, calls an accelerator or has element
            types that Triton lacks; or a name or number is invalid.
        StorageError: it cannot be written.
        targets.TargetError: the toolchain is missing or failed.
        MissingDependencyError: the runtime's libraries for the architecture are not available.
    """
    options = options or TritonOptions()
    for check in (check_architecture, check_accelerator):
        check(artifact, target)
    check_has_machine_code(artifact)
    name = file.stem if options.name is None else options.name
    if not _NAME.fullmatch(name):
        raise OptionError(f"{name!r} is not a valid Triton model name", "use letters, digits, '_', '-' and '.'")
    rows = _rows(artifact, options.max_batch_size)
    instances = _instances(artifact, options.instances)
    text = configuration_text(name, artifact.manifest, rows, instances)
    programs = device_programs(target)
    try:
        _write_backend(output, target, programs)
        version = _write_model(output / "models" / name, file, artifact, text)
    except OSError as error:
        raise StorageError(f"{output} cannot be written: {error}", "free space, or give another folder") from error
    return TritonRepository(output, name, version, rows, instances)


def _rows(artifact: Artifact, requested: int | None) -> int:
    """Return `max_batch_size`: rows can be batched if they are the first dimension of all inputs and outputs."""
    manifest = artifact.manifest
    tensors = (*manifest.inputs, *manifest.outputs)
    first = {each.shape[0] if each.shape else None for each in tensors}
    symbolic = len(first) == 1 and all(isinstance(size, str) for size in first) and bool(manifest.inputs)
    if requested is not None:
        if requested < 0 or (requested and not symbolic):
            problem = "the first dimension of its inputs and outputs is not one symbolic one"
            raise OptionError(
                f"max_batch_size of {requested}: {problem}" if requested > 0 else f"max_batch_size of {requested}"
            )
        return requested
    if not symbolic or manifest.states:
        return 0
    try:
        layout = find_layout(Module(artifact))
    except IncompatibleArtifactError:
        return 0  # unknown, since it does not run here
    axes = set() if layout is None else {*layout.inputs.values(), *layout.outputs.values()}
    whole = layout is not None and len(layout.inputs) == len(manifest.inputs) and layout.rows is None
    return _DEFAULT_ROWS if whole and axes == {0} else 0


def _instances(artifact: Artifact, requested: int | None) -> int:
    if requested is None:
        return max(1, usable_processors() // (artifact.manifest.threads or 1))
    if requested < 1:
        raise OptionError(f"instances of {requested}: at least one run must compute")
    return requested


def _write_backend(output: Path, target: Target, programs: Path) -> None:
    folder = output / "backends" / BACKEND
    folder.mkdir(parents=True, exist_ok=True)
    for library in (FFI_LIBRARY, RUNTIME_LIBRARY, SHARED_LIBRARY):
        _replace(programs / library, folder / library)
    _replace(SOURCES / HEADER, folder / HEADER)
    _replace(Path(__file__).with_name(BACKEND_SOURCE), folder / BACKEND_SOURCE)
    described = {"compiler": target.compiler().command[0], "commit": _HEADERS_COMMIT, "library": BACKEND_LIBRARY}
    makefile = _MAKEFILE
    for key, value in {**described, "source": BACKEND_SOURCE, **_HEADERS}.items():
        makefile = makefile.replace(f"{{{key}}}", value)
    (folder / "Makefile").write_text(makefile, encoding="utf-8")
    for name, content in licenses().items():
        path = folder / "licenses" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    glibc = glibc_of_files(sorted(folder.glob("*.so")))
    text = _README.format(backend=BACKEND, architecture=target.architecture, glibc=glibc)
    (output / "README").write_text(text, encoding="utf-8")


def _replace(source: Path, target: Path) -> None:
    """Atomically copy a file over one that a server may have open."""
    if not target.exists() or target.read_bytes() != source.read_bytes():
        write_atomically(target, [source.read_bytes()])


def _write_model(folder: Path, file: Path, artifact: Artifact, configuration: str) -> int:
    """Write the model's next version, which a server sees only when it is complete; return its number."""
    folder.mkdir(parents=True, exist_ok=True)
    version = 1 + max((int(each.name) for each in folder.iterdir() if each.name.isdigit()), default=0)
    staging = folder / f"new-{version}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        write_module(artifact, file, staging / MODULE)
        write_atomically(folder / "config.pbtxt", [configuration.encode()])
        staging.rename(folder / str(version))
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return version
