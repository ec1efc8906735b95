"""Which NVIDIA graphics processors this machine has, asked of the driver."""

from __future__ import annotations

import ctypes
from functools import cache

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@cache
def compute_capabilities() -> tuple[int, ...]:
    """The compute capability of each device, in the driver's order, as major times ten plus minor; empty where there
    is no driver or no device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return ()
    return tuple(_capability(driver, device) for device in range(count.value))


def _capability(driver: ctypes.CDLL, device: int) -> int:
    value, parts = ctypes.c_int(), []
    for attribute in (_MAJOR, _MINOR):
        failed = driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0
        parts.append(0 if failed else value.value)
    return 10 * parts[0] + parts[1]
