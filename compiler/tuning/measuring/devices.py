"""Checks, before anything is measured, that a device is reachable and can run code of the target."""

from __future__ import annotations

from contextlib import closing

from compiler.device.compatibility import ask_versions, check_kernels_run_there
from compiler.device.connection import Connection, NoDeviceServerError
from compiler.device.credentials import Credentials
from compiler.errors import OptionError
from compiler.tuning.measuring.device_names import parse_device
from compiler.tuning.measuring.runners import is_reachable
from targets import Target


def check_device(device: str, target: Target, credentials: Credentials | None = None) -> str | None:
    """Query a device's server, as `push` does.

    Args:
        device: "HOST:PORT" of a server or "KEY@HOST:PORT" of a tracker, whose devices are not asked: those are
            TVM's servers.
        credentials: for an encrypted connection.

    Returns:
        What could not be checked: a server of TVM does not say what it is. None where all was.

    Raises:
        OptionError: nothing listens there.
        DeviceError: the device cannot run kernels of the target, its server is of another version, or refuses this
            client.
    """
    key, host, port = parse_device(device)
    if key and credentials is not None:
        raise OptionError(f"device {device!r}: connections over a tracker are not encrypted", "name HOST:PORT")
    if not is_reachable(device):
        raise OptionError(
            f"device {device!r} cannot be reached", "start its server, and check that no firewall blocks the port"
        )
    unknown = f"device {device}: no report on whether it can run target {target.name!r} (no tensorwright-server)"
    if key:
        return unknown
    address = f"{host}:{port}"
    try:
        connection = Connection(address, credentials)
    except NoDeviceServerError:
        if credentials is not None:
            raise
        return unknown
    with closing(connection):
        check_kernels_run_there(target, ask_versions(connection), address)
    return None
