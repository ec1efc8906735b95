"""Lists this machine's NVIDIA GPUs by querying the driver."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_OLDEST_DRIVER = 13000  # supported by CUDA 13's runtime
_NO_DEVICE = 100  # CUresult
_UPDATE = "install NVIDIA's driver 580 or newer"
_CONTAINER = "install the driver; in a container, let it see the GPU (docker run --gpus all)"


@dataclass(frozen=True)
class CudaDevices:
    """The compute capability of each device, in the driver's order, as major times ten plus minor, and its name; if
    there are none, the reason and the remedy."""

    capabilities: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    problem: str | None = None
    hint: str | None = None


def compute_capabilities() -> tuple[int, ...]:
    """The compute capability of each device; empty if there is no driver, an outdated one, or no device."""
    return cuda_devices().capabilities


@cache
def cuda_devices() -> CudaDevices:
    """Query the driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return CudaDevices(problem=f"NVIDIA's driver cannot be loaded: {error}", hint=_CONTAINER)
    version, count = ctypes.c_int(), ctypes.c_int()
    if result := driver.cuDriverGetVersion(ctypes.byref(version)):
        return _failed(driver, result)
    if version.value < _OLDEST_DRIVER:
        supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return CudaDevices(
            problem=f"NVIDIA's driver is too old: it supports CUDA {supported}, and CUDA 13.0 is needed", hint=_UPDATE
        )
    if result := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return _failed(driver, result)
    if count.value == 0:
        return _failed(driver, _NO_DEVICE)
    devices = range(count.value)
    return CudaDevices(
        tuple(_capability(driver, device) for device in devices), tuple(_name(driver, device) for device in devices)
    )


def _failed(driver: ctypes.CDLL, result: int) -> CudaDevices:
    if result == _NO_DEVICE:
        return CudaDevices(
            problem="NVIDIA's driver finds no GPU", hint="see what nvidia-smi says, and what CUDA_VISIBLE_DEVICES hides"
        )
    text = ctypes.c_char_p()
    driver.cuGetErrorString(result, ctypes.byref(text))
    words = (text.value or b"error").decode(errors="replace")
    return CudaDevices(
        problem=f"NVIDIA's driver could not be started: {words} ({result})",
        hint="see what nvidia-smi says; after an update of the driver, restart the machine",
    )


def _capability(driver: ctypes.CDLL, device: int) -> int:
    value, parts = ctypes.c_int(), []
    for attribute in (_MAJOR, _MINOR):
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0
        parts.append(0 if failed else value.value)
    return 10 * parts[0] + parts[1]


def _name(driver: ctypes.CDLL, device: int) -> str:
    text = ctypes.create_string_buffer(256)
    return text.value.decode(errors="replace") if driver.cuDeviceGetName(text, 255, device) == 0 else f"device {device}"
