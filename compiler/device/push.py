"""`push`: a module to a running device server, which switches to it only after it proved itself there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact import read_artifact
from compiler.artifact.storage import read_mapped
from compiler.errors import DeviceError, OptionError

_CHUNK_BYTES = 4 << 20
_DIGEST = slice(32, 64)  # of the file's head, which holds the digests of everything else
_CONNECT_SECONDS = 10
Progress = Callable[[str], None]


@dataclass(frozen=True)
class PushResult:
    """What the device said.

    Attributes:
        difference: the largest difference of the reference run's outputs from the stored ones.
        p50_milliseconds, p99_milliseconds: of `runs` runs there.
        replaced: digest of the module that was active before; None when there was none.
        active: digest of the module that is active now.
    """

    difference: float
    p50_milliseconds: float
    p99_milliseconds: float
    runs: int
    replaced: str | None
    active: str


def push(path: Path, address: str, *, runs: int = 20, progress: Progress | None = None) -> PushResult:
    """Upload a module to `tensorwright-server`, check it there, measure it, and make it the active one.

    Until the very last step the module that was active stays so.

    Args:
        path: a .twm file with a stored reference.
        address: "HOST:PORT".
        runs: how many runs to measure.

    Raises:
        ArtifactError: the file is damaged, here already.
        OptionError: the address is not one, or the module has no reference to compare with.
        DeviceError: no server there, or the module did not prove itself; the message says in which step.
    """
    report = progress if progress is not None else lambda _: None
    artifact = read_artifact(path)
    if not artifact.reference_outputs:
        raise OptionError(f"{path} holds no reference input and output", "compile it with reference inputs")
    data = read_mapped(path)
    digest = bytes(data[_DIGEST]).hex()
    report("connect")
    session = _connect(address)
    name = f"incoming-{digest[:16]}.twm"
    device = _Device(session, address)
    before = device.call("active", "ask for the active module")
    try:
        report("upload")
        for start in range(0, len(data), _CHUNK_BYTES):
            chunk = bytearray(data[start : start + _CHUNK_BYTES])
            device.call("append", "upload", name, chunk, start == 0)
        report("check")
        found = device.call("digest", "check", name)
        if found != digest:
            raise DeviceError(f"{address} received another file than was sent", "push again")
        report("reference run")
        difference = float(device.call("verify", "reference run", name))
        report("measure")
        p50, p99 = (float(each) for each in device.call("measure", "measuring", name, runs).split())
        report("switch")
        device.call("activate", "switch", name)
    except DeviceError:
        with contextlib.suppress(DeviceError):
            device.call("remove", "remove", name)
        raise
    return PushResult(difference, p50, p99, runs, before or None, device.call("active", "ask for the active module"))


def _connect(address: str) -> Any:
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdigit():
        raise OptionError(f"{address!r} is no address", "write HOST:PORT, such as 192.168.0.7:9090")
    from tvm import rpc

    import schedules.engine  # noqa: F401  (first, so that the engine loads without torch)

    with _as_device_error(f"no device server answers at {address}", "start tensorwright-server there"):
        return rpc.connect(host, int(port), session_timeout=0)


class _Device:
    """The server's functions."""

    def __init__(self, session: Any, address: str) -> None:
        self._session = session
        self._address = address

    def call(self, function: str, step: str, *arguments: Any) -> Any:
        """Call one. Raises DeviceError that names the step."""
        with _as_device_error(f"{self._address}: {step} failed", "the module that was active there still is"):
            return self._session.get_function(f"tensorwright.device.{function}")(*arguments)


@contextlib.contextmanager
def _as_device_error(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises whatever class its C++ side names
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DeviceError(f"{what}: {_reason(lines)}", hint) from error


def _reason(lines: list[str]) -> str:
    """The device's own words out of the engine's error text: its last line."""
    words = [line for line in lines if "Error caught from RPC call" not in line]
    return (words[-1] if words else "no reason given").removeprefix("InternalError: ")[:500]
