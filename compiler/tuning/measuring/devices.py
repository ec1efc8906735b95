"""Whether a device to tune on is there, and can run what is built for the target: asked before anything is measured."""

from __future__ import annotations

from contextlib import closing

from compiler.device.compatibility import check_kernels_run_there, versions_if_told
from compiler.device.connection import Connection
from compiler.errors import OptionError
from compiler.tuning.measuring.runners import is_reachable, parse_device
from targets import Target


def check_device(device: str, target: Target) -> str | None:
    """Ask a device's server what it is, as `push` does.

    Args:
        device: "HOST:PORT" of a server or "KEY@HOST:PORT" of a tracker, whose devices are not asked: those are the
            engine's servers.

    Returns:
        What could not be checked: the engine's server does not say what it is. None where all was.

    Raises:
        OptionError: nobody listens there.
        DeviceError: the device can not run kernels of the target, or its server is of another version.
    """
    if not is_reachable(device):
        raise OptionError(
            f"device {device!r} can not be reached", "start its server, and see that nothing blocks the port"
        )
    key, host, port = parse_device(device)
    unknown = f"device {device}: it does not say whether it can run target {target.name!r} (no tensorwright-server)"
    if key:
        return unknown
    address = f"{host}:{port}"
    with closing(Connection(address)) as connection:
        versions = versions_if_told(connection, address)
        if versions is None:
            return unknown
        check_kernels_run_there(target, versions, address)
    return None
