"""Devices behind TVM's tracker: lists them, and requests one for a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
from tvm import rpc
from tvm.rpc import base

from compiler.errors import DeviceError, OptionError
from compiler.tuning.measuring.device_names import LOCAL, parse_device

_REQUEST_SECONDS = 60.0


def with_fleets(devices: Sequence[str]) -> tuple[str, ...]:
    """The devices to measure on: a tracker's key, however often it is named, is replaced by all servers that have it.
    Raises OptionError if a tracker has no server with a key, or does not answer."""
    expanded: list[str] = []
    for device in dict.fromkeys(devices):
        key, host, port = (None, "", 0) if device == LOCAL else parse_device(device)
        expanded += [device] * (_servers(key, (host, port), device) if key else devices.count(device))
    return tuple(expanded)


def _servers(key: str, tracker: tuple[str, int], device: str) -> int:
    """Number of registered servers with a key."""
    keys = [str(each["key"]).partition(":")[2] for each in _summary(tracker, device)["server_info"]]
    if key not in keys:
        others = f"; it has {', '.join(sorted(set(keys)))}" if keys else ""
        raise OptionError(
            f"device {device!r}: the tracker knows no server with the key {key!r}{others}",
            "start servers with --tracker HOST:PORT --key KEY",
        )
    return keys.count(key)


def _summary(tracker: tuple[str, int], device: str) -> dict[str, Any]:
    try:
        session = rpc.connect_tracker(*tracker)
        try:
            summary: dict[str, Any] = session.summary()
        finally:
            session.close()
    except (OSError, RuntimeError, ValueError) as error:
        raise OptionError(f"device {device!r}: no tracker answers there: {error}", "start one") from error
    return summary


def request_server(key: str, tracker: tuple[str, int]) -> tuple[str, int, str]:
    """Address and password of a server that is free now. Unlike TVM's own request, it does not wait forever. Raises
    DeviceError if none is free."""
    session = rpc.connect_tracker(*tracker)
    try:
        session._sock.settimeout(_REQUEST_SECONDS)
        base.sendjson(session._sock, [base.TrackerCode.REQUEST, key, "", 1])
        code, answer = base.recvjson(session._sock)
    except OSError as error:
        raise DeviceError(f"no server with the key {key!r} is free: {error}", "wait, or start another") from error
    finally:
        session.close()
    if code != base.TrackerCode.SUCCESS:
        raise DeviceError(f"the tracker returned no server with the key {key!r}: {answer}", "look at its log")
    host, port, password = answer
    return str(host), int(port), str(password)
