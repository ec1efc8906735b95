"""Devices that kernels run on: the CPU, or a GPU with its own memory; functions of a target beyond TVM's."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from compiler.artifact.manifest import DeviceRequirement, Manifest
from compiler.errors import IncompatibleArtifactError, MissingDependencyError
from compiler.runtime.library import initialized, load_executable, new_virtual_machine
from compiler.runtime.tvm_runtime import global_function, runtime_library, runtime_library_path, tvm_ffi

if TYPE_CHECKING:
    from schedules.ir.tvm_types import PackedFunc, RuntimeModule, RuntimeTensor

CUDA_PART = "libtvm_runtime_cuda.so"
CUDA_RUNTIME = "libcudart.so.13"
CUDA_RUNTIME_DISTRIBUTION = "nvidia-cuda-runtime"
_CPU, _CUDA = 1, 2  # DLPack's device types
_POOLED = 2
_DEFAULT_STREAM = 0


class Device:
    """The CPU; tensors need no transfer."""

    stays = False
    """True if a run must stay on the calling thread and use no other threads."""

    shares_memory = True
    """True if the CPU can access the memory that kernels use."""

    def load(self, library: bytes | memoryview) -> RuntimeModule:
        """Load a library as a TVM module."""
        return load_executable(library)

    def virtual_machine(self, executable: RuntimeModule) -> RuntimeModule:
        """Create a virtual machine that runs kernels on this device."""
        return new_virtual_machine(executable)

    def to_device(self, tensor: RuntimeTensor) -> RuntimeTensor:
        """Move a CPU tensor to memory that kernels can read."""
        return tensor

    def run(self, main: PackedFunc, tensors: Sequence[RuntimeTensor], kept: list[Any]) -> Sequence[RuntimeTensor]:
        """Run a virtual machine's function on CPU tensors; return TVM's array of results in CPU memory. For `kept`, see
        `place`."""
        return main(*tensors)

    def place(self, tensors: Sequence[RuntimeTensor], kept: list[Any]) -> Sequence[RuntimeTensor]:
        """Copies of CPU tensors where kernels can read them. `kept` has the same length, with None at first, then
        buffers that the next call may reuse; nobody reads them any more by then."""
        return tensors

    def call(self, main: PackedFunc, tensors: Iterable[RuntimeTensor]) -> Sequence[RuntimeTensor]:
        """Results of a virtual machine's function for tensors that kernels can read, once they are computed."""
        return main(*tensors)

    def to_host(self, results: Sequence[RuntimeTensor]) -> Sequence[RuntimeTensor]:
        """TVM's array of results in CPU memory."""
        return results


class CudaDevice(Device):
    """An NVIDIA GPU. Memory comes from TVM's pool.

    Kernels are launched on the calling thread's stream (`tvm_ffi.use_raw_stream`); TVM copies on the default stream,
    which does not synchronize with other streams.
    """

    stays = True
    shares_memory = False

    def __init__(self, index: int = 0) -> None:
        """The device with this number, in the driver's order."""
        self._index = index

    def virtual_machine(self, executable: object) -> Any:
        return initialized(executable, (_CUDA, self._index, _POOLED, _CPU, 0, _POOLED))

    def to_device(self, tensor: object) -> Any:
        return _copied(tensor, tvm_ffi.device("cuda", self._index))

    def run(self, main: object, tensors: Sequence[object], kept: list[Any]) -> Any:
        return self.to_host(self.call(main, self.place(tensors, kept)))

    def place(self, tensors: Sequence[Any], kept: list[Any]) -> Sequence[Any]:
        # Allocating memory takes the driver longer than a small model's run.
        for index, tensor in enumerate(tensors):
            old = kept[index]
            if old is not None and old.shape == tensor.shape and old.dtype == tensor.dtype:
                global_function("runtime.TVMTensorCopyFromTo")(tensor, old)
            else:
                kept[index] = self.to_device(tensor)
        return kept

    def call(self, main: Any, tensors: Iterable[Any]) -> Any:
        device = tvm_ffi.device("cuda", self._index)
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
    """Return the device that a module needs.

    Raises:
        IncompatibleArtifactError: this machine has no device that can run it.
        MissingDependencyError: TVM's runtime library for the device cannot be loaded.
    """
    requirement = manifest.target.device
    if requirement is None:
        return Device()
    if requirement.kind != "cuda":
        raise IncompatibleArtifactError(f"the module needs an unknown kind of device: {requirement.kind!r}")
    index = _suitable(manifest.target.name, requirement)
    load_cuda_runtime()
    return CudaDevice(index)


def _suitable(target: str, requirement: DeviceRequirement) -> int:
    """Return the first GPU with the required compute capability. Raises IncompatibleArtifactError."""
    from targets.cuda import device as cuda_device

    if requirement.simulated:
        raise IncompatibleArtifactError(
            f"the module (target {target!r}) holds no machine code for a GPU",
            "compile it for one; `compile` gives a module that runs simulated here",
        )
    needed, devices = requirement.compute_capability, cuda_device.cuda_devices()
    for index, capability in enumerate(devices.capabilities):
        if capability >= needed:
            return index
    text = f"the module (target {target!r}) needs an NVIDIA GPU of compute capability {needed / 10} or newer, and "
    if devices.problem is not None:
        raise IncompatibleArtifactError(text + devices.problem, devices.hint)
    has = [f"{name} ({each / 10})" for name, each in zip(devices.names, devices.capabilities, strict=True)]
    raise IncompatibleArtifactError(f"{text}this machine has {', '.join(has)}", "compile it for this GPU")


@cache
def load_cuda_runtime() -> None:
    """Load TVM's CUDA runtime and the CUDA runtime library. Raises MissingDependencyError."""
    runtime_library()
    path = runtime_library_path().with_name(CUDA_PART)
    try:
        ctypes.CDLL(CUDA_RUNTIME, ctypes.RTLD_GLOBAL)
    except OSError as error:
        _load_installed(error)
    try:
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise MissingDependencyError(f"{path} could not be loaded: {error}", "reinstall apache-tvm") from error


def _load_installed(reason: OSError) -> None:
    """Load the CUDA runtime from NVIDIA's Python package. Raises MissingDependencyError."""
    import importlib.metadata  # importing it takes longer than loading a small model

    try:
        files = importlib.metadata.files(CUDA_RUNTIME_DISTRIBUTION) or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == CUDA_RUNTIME:
            ctypes.CDLL(str(file.locate()), ctypes.RTLD_GLOBAL)
            return
    raise MissingDependencyError(
        f"the runtime of CUDA 13 could not be loaded: {reason}",
        f"pip install {CUDA_RUNTIME_DISTRIBUTION}, or put the folder of {CUDA_RUNTIME} into LD_LIBRARY_PATH",
    ) from reason


_known: set[str] = set()


def load_accelerator(manifest: Manifest) -> None:
    """Load the driver or simulator of the target's accelerator if the module uses one. Raises IncompatibleArtifactError
    if the target is not installed here."""
    name = manifest.target.name
    partition = manifest.target.details.get("partition")
    if name in _known or not isinstance(partition, dict) or not partition.get("claimed"):
        return
    import targets

    try:
        target = targets.get(name)
    except targets.TargetError as error:
        raise IncompatibleArtifactError(
            f"the module calls functions of its target {name!r}, which is not installed here: {error.message}",
            "install the package that offers the target",
        ) from error
    load_runtime_of(target)


def load_runtime_of(target: Any) -> None:
    """Load the accelerator of a given target, registered or not."""
    if target.name not in _known:
        target.load_runtime()
        _known.add(target.name)
