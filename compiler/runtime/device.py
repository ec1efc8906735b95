"""Where a module's kernels run: on the processor, or on a graphics processor whose memory is its own."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from functools import cache
from typing import Any

from compiler.artifact.manifest import Manifest
from compiler.errors import IncompatibleArtifactError, MissingDependencyError
from compiler.runtime.engine import global_function, runtime_library, runtime_library_path, tvm_ffi
from compiler.runtime.library import initialized, load_executable, new_virtual_machine

_CPU, _CUDA = 1, 2  # DLPack's device types
_POOLED = 2
_DEFAULT_STREAM = 0


class Device:
    """The processor: tensors are where they are needed."""

    def load(self, library: bytes | memoryview) -> Any:
        """The engine's module of a library."""
        return load_executable(library)

    def virtual_machine(self, executable: Any) -> Any:
        """A virtual machine that runs kernels here."""
        return new_virtual_machine(executable)

    def to_device(self, tensor: Any) -> Any:
        """A tensor of the processor where kernels read it."""
        return tensor

    def call(self, main: Any, tensors: Iterable[Any]) -> Any:
        """What a virtual machine's function gives for tensors that lie where kernels read them, when it is computed."""
        return main(*tensors)

    def to_host(self, results: Any) -> Any:
        """The engine's array of results where the processor reads them."""
        return results


class CudaDevice(Device):
    """The first NVIDIA graphics processor. Memory comes from the engine's pool.

    Kernels are launched on the calling thread's stream (`tvm_ffi.use_raw_stream`); the engine copies on the default
    one, which does not wait for other streams, nor they for it.
    """

    def virtual_machine(self, executable: Any) -> Any:
        return initialized(executable, (_CUDA, 0, _POOLED, _CPU, 0, _POOLED))

    def to_device(self, tensor: Any) -> Any:
        return _copied(tensor, tvm_ffi.device("cuda", 0))

    def call(self, main: Any, tensors: Iterable[Any]) -> Any:
        device = tvm_ffi.device("cuda", 0)
        stream, wait = tvm_ffi.get_raw_stream(device), global_function("runtime.Device_StreamSync")
        placed = list(tensors)
        if stream != _DEFAULT_STREAM:
            wait(device, _DEFAULT_STREAM)
        results = main(*placed)
        wait(device, stream)
        return results

    def to_host(self, results: Any) -> Any:
        host = tvm_ffi.device("cpu", 0)
        return tvm_ffi.convert([_copied(each, host) for each in results])


def _copied(tensor: Any, device: Any) -> Any:
    copy = global_function("runtime.TVMTensorAllocWithScope")(tensor.shape, tensor.dtype, device, None)
    global_function("runtime.TVMTensorCopyFromTo")(tensor, copy)
    if device.type == "cpu":
        global_function("runtime.Device_StreamSync")(tensor.device, _DEFAULT_STREAM)
    return copy


def device_for(manifest: Manifest) -> Device:
    """The device that a module needs.

    Raises:
        IncompatibleArtifactError: this machine has none that runs it.
        MissingDependencyError: the engine's part for it can not be loaded.
    """
    wanted = manifest.target.details.get("device")
    if wanted is None:
        return Device()
    if not isinstance(wanted, dict) or wanted.get("kind") != "cuda":
        raise IncompatibleArtifactError(f"the module needs a device that is not known here: {wanted}")
    from targets import cuda_device

    needed = int(str(wanted.get("compute_capability", 0)))
    found = cuda_device.compute_capabilities()
    if wanted.get("simulated") or not any(each >= needed for each in found):
        has = f"compute capability {', '.join(str(each / 10) for each in found)}" if found else "none"
        raise IncompatibleArtifactError(
            f"the module (target {manifest.target.name!r}) needs an NVIDIA graphics processor of compute capability "
            f"{needed / 10} or newer, and this machine has {has}",
            "run it on a machine that has one; `compile` gives a module that runs simulated here",
        )
    _load_cuda_runtime()
    return CudaDevice()


@cache
def _load_cuda_runtime() -> None:
    """Load the part of the engine that launches CUDA kernels. Raises MissingDependencyError."""
    runtime_library()
    path = runtime_library_path().with_name("libtvm_runtime_cuda.so")
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingDependencyError(
            f"{path} could not be loaded: {error}",
            "install the runtime of CUDA 13, and put the folder of libcudart.so.13 into LD_LIBRARY_PATH",
        ) from error
