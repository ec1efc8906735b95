"""`push`: a module to a running device server, which switches to it only after it proved itself there."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact import Key, Manifest, read_artifact
from compiler.artifact.storage import read_mapped, read_private
from compiler.device.compatibility import NEW_PROGRAMS, ask_versions, check_runs_there, connect
from compiler.device.connection import ANSWER_SECONDS
from compiler.device.credentials import Credentials
from compiler.errors import DeviceError, OptionError

_CHUNK_BYTES = 1 << 20  # the longest frame that the server takes
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
        moved_aside: why the module that was active before was not usable; None when it was.
    """

    difference: float
    p50_milliseconds: float
    p99_milliseconds: float
    runs: int
    replaced: str | None
    active: str
    moved_aside: str | None = None


def push(
    path: Path,
    address: str,
    *,
    credentials: Credentials | None = None,
    trusted_keys: Sequence[Key] | None = None,
    runs: int = 20,
    run_seconds: float = 600,
    progress: Progress | None = None,
) -> PushResult:
    """Upload a module to `tensorwright-server`, check it there, measure it, and make it the active one.

    Until the very last step the module that was active stays so.

    Args:
        path: a .twm file with a stored reference.
        address: "HOST:PORT".
        credentials: keys for an encrypted connection; a server that has keys takes no other.
        trusted_keys: Ed25519 public keys, as for `load`: the module must be signed by one, which is checked here before
            anything is sent. What the server trusts is its own decision.
        runs: how many runs to measure.
        run_seconds: how long the device may take to load the module and run it once.

    Raises:
        ArtifactError: the file is damaged, here already.
        SignatureError: no trusted key signed it.
        OptionError: the address is not one, or the module has no reference to compare with.
        IncompatibleArtifactError: the device cannot run the module: another processor, format or engine.
        DeviceError: no server there, one of another version or with other keys, it stopped answering (a device that
            loses power is noticed within 30 s), or the module did not prove itself; the message says in which step.
    """
    report = progress if progress is not None else lambda _: None
    data = read_mapped(path) if trusted_keys is None else read_private(path)
    artifact = read_artifact(path if trusted_keys is None else bytes(data), trusted_keys)
    if not artifact.reference_outputs:
        raise OptionError(f"{path} holds no reference input and output", "compile it with reference inputs")
    digest = bytes(data[_DIGEST]).hex()
    report("connect")
    with closing(_Device(address, credentials)) as device:
        device.check(artifact.manifest)
        before, note = device.active()
        report("upload")
        device.upload(data)
        report("check")
        if device.call("check", "check") != digest:
            raise DeviceError(f"{address} received another file than was sent", "push again")
        report("reference run")
        began = time.monotonic()
        difference = float(device.call("verify", "reference run", seconds=run_seconds))
        longest = ANSWER_SECONDS + _SLOWER * (runs + 1) * (time.monotonic() - began)
        report("measure")
        p50, p99 = (float(each) for each in device.call(f"measure {runs}", "measuring", seconds=longest).split())
        report("switch")
        device.call("activate", "switch")
        return PushResult(difference, p50, p99, runs, before, device.active()[0] or "", note)


@dataclass(frozen=True)
class DeviceTimes:
    """What `measure` returns.

    Attributes:
        difference: as of `PushResult`.
        device: the graphics processor; "" where the module ran on the processor.
        times: milliseconds, "p50" and "p99" of each kind: "ms" of runs with the copies of inputs and outputs; on a
            graphics processor also "device_ms" and "host_ms" of runs without them, by its clock and by the
            processor's, and "graph_ms" and "graph_host_ms" of the run as one CUDA graph.
        graph_problem: why the run is not a CUDA graph; None where it is one, or there is no graphics processor.
    """

    difference: float
    runs: int
    device: str
    times: Mapping[str, Mapping[str, float]]
    graph_problem: str | None = None


def measure(
    path: Path,
    address: str,
    *,
    credentials: Credentials | None = None,
    trusted_keys: Sequence[Key] | None = None,
    runs: int = 20,
    run_seconds: float = 600,
    progress: Progress | None = None,
) -> DeviceTimes:
    """Verify and time a module on a device server, as `push` does, but leave the active module as it is.

    Raises: as `push`.
    """
    report = progress if progress is not None else lambda _: None
    data = read_mapped(path) if trusted_keys is None else read_private(path)
    artifact = read_artifact(path if trusted_keys is None else bytes(data), trusted_keys)
    if not artifact.reference_outputs:
        raise OptionError(f"{path} holds no reference input and output", "compile it with reference inputs")
    report("connect")
    with closing(_Device(address, credentials)) as device:
        device.check(artifact.manifest)
        report("upload")
        device.upload(data)
        device.call("check", "check")
        report("reference run")
        began = time.monotonic()
        difference = float(device.call("verify", "reference run", seconds=run_seconds))
        # Runs are timed in three ways, each with a few more than those that count.
        longest = ANSWER_SECONDS + _SLOWER * 3 * (runs + 4) * (time.monotonic() - began)
        report("measure")
        answer = device.call(f"times {runs}", "measuring", seconds=longest)
    try:
        found = json.loads(answer)
        times = {name: {"p50": each["p50"], "p99": each["p99"]} for name, each in found.items() if name.endswith("ms")}
        return DeviceTimes(difference, runs, str(found["device"]), times, found.get("graph_problem"))
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"{address}: measuring failed: it answered {answer[:200]!r}", NEW_PROGRAMS) from error


class _Device:
    """The server's requests."""

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._connection = connect(address, credentials)
        self._address = address
        self.close = self._connection.close

    def check(self, manifest: Manifest) -> None:
        """See `compatibility`."""
        check_runs_there(manifest, ask_versions(self._connection), self._address)

    def active(self) -> tuple[str | None, str | None]:
        """The digest of the active module, and why one was moved aside."""
        digest, _, note = self.call("active", "ask for the active module").partition(" ")
        return digest or None, note or None

    def upload(self, data: memoryview) -> None:
        """Send a file."""
        self.call(f"upload {len(data)}", "upload")
        what, hint = self._words("upload")
        for start in range(0, len(data), _CHUNK_BYTES):
            self._connection.send_data(data[start : start + _CHUNK_BYTES], what=what, hint=hint)
        self._connection.answer(what=what, hint=hint)

    def call(self, request: str, step: str, *, seconds: float | None = None) -> str:
        """The answer to one. Raises DeviceError that names the step."""
        what, hint = self._words(step)
        return self._connection.call(request, what=what, hint=hint, seconds=seconds)

    def _words(self, step: str) -> tuple[str, str]:
        return f"{self._address}: {step} failed", "the module that was active there still is"
