"""`push`: a module to a running device server, which switches to it only after it proved itself there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compiler.artifact import Manifest, read_artifact
from compiler.artifact.storage import read_mapped
from compiler.device.compatibility import ask_versions, check_runs_there
from compiler.device.connection import ANSWER_SECONDS, Connection
from compiler.errors import DeviceError, OptionError

_CHUNK_BYTES = 4 << 20
_DIGEST = slice(32, 64)  # of the file's head, which holds the digests of everything else
_SLOWER = 5  # a measured run may take so many times what the reference run took
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


def push(
    path: Path, address: str, *, runs: int = 20, run_seconds: float = 600, progress: Progress | None = None
) -> PushResult:
    """Upload a module to `tensorwright-server`, check it there, measure it, and make it the active one.

    Until the very last step the module that was active stays so.

    Args:
        path: a .twm file with a stored reference.
        address: "HOST:PORT".
        runs: how many runs to measure.
        run_seconds: how long the device may take to load the module and run it once.

    Raises:
        ArtifactError: the file is damaged, here already.
        OptionError: the address is not one, or the module has no reference to compare with.
        IncompatibleArtifactError: the device can not run the module: another processor, format or engine.
        DeviceError: no server there, one of another version, it stopped answering (a device that loses power is noticed
            within 30 s), or the module did not prove itself; the message says in which step.
    """
    report = progress if progress is not None else lambda _: None
    artifact = read_artifact(path)
    if not artifact.reference_outputs:
        raise OptionError(f"{path} holds no reference input and output", "compile it with reference inputs")
    data = read_mapped(path)
    digest = bytes(data[_DIGEST]).hex()
    report("connect")
    device = _Device(address)
    device.check(artifact.manifest)
    name = f"incoming-{digest[:16]}.twm"
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
        began = time.monotonic()
        difference = float(device.call("verify", "reference run", name, seconds=run_seconds))
        longest = ANSWER_SECONDS + _SLOWER * (runs + 1) * (time.monotonic() - began)
        report("measure")
        p50, p99 = (float(each) for each in device.call("measure", "measuring", name, runs, seconds=longest).split())
        report("switch")
        device.call("activate", "switch", name)
    except DeviceError:
        with contextlib.suppress(DeviceError):
            device.call("remove", "remove", name)
        raise
    return PushResult(difference, p50, p99, runs, before or None, device.call("active", "ask for the active module"))


class _Device:
    """The server's functions."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        self._address = address

    def check(self, manifest: Manifest) -> None:
        """See `compatibility`."""
        check_runs_there(manifest, ask_versions(self._connection, self._address), self._address)

    def call(self, function: str, step: str, *arguments: Any, seconds: float | None = None) -> Any:
        """Call one. Raises DeviceError that names the step."""
        what, hint = f"{self._address}: {step} failed", "the module that was active there still is"
        name = f"tensorwright.device.{function}"
        return self._connection.call(name, *arguments, what=what, hint=hint, seconds=seconds)
