"""Names of the devices that kernels are measured on."""

from __future__ import annotations

from compiler.errors import OptionError

LOCAL = "local"


def parse_device(device: str) -> tuple[str | None, str, int]:
    """(key, host, port) of "HOST:PORT" or "KEY@HOST:PORT" (a tracker). Raises OptionError for other texts."""
    key, _, address = device.rpartition("@")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise OptionError(
            f"device {device!r} is not understood",
            "write 'local', HOST:PORT of an RPC server, or KEY@HOST:PORT of a tracker",
        )
    return key or None, host, int(port)
