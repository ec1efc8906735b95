"""`push`: uploads a module to a running device server, which activates it only after verifying it."""

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

_CHUNK_BYTES = 1 << 20  # the longest frame that the server accepts
_DIGEST = slice(32, 64)  # of the file's header, which has the digests of everything else
_SLOWER = 5  # timeout of a timed run, as a multiple of the reference run's time
Progress = Callable[[str], None]


@dataclass(frozen=True)
class PushResult:
    """The device's report.

    Attributes:
        difference: largest absolute difference between the outputs of the reference run and the stored ones.
        p50_milliseconds, p99_milliseconds: percentiles of `runs` runs on the device.
        replaced: digest of the previously active module; None if there was none.
        active: digest of the active module.
        moved_aside: why the previously active module was unusable; None if it was usable.
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
    """Upload a module to `tensorwright-server`, verify and time it there, and activate it.

    The previously active module stays active until the last step.

    Args:
        path: a .twm file with a stored reference.
        address: "HOST:PORT".
        credentials: keys for an encrypted connection; a server with keys accepts no others.
        trusted_keys: Ed25519 public keys, as for `load`: the module must be signed by one of them, which is checked
            before anything is sent. The server checks its own list of trusted keys.
        runs: number of timed runs.
        run_seconds: timeout for loading the module and running it once.

    Raises:
        ArtifactError: the local file is damaged.
        SignatureError: no trusted key signed it.
        OptionError: the address is not valid, or the module has no reference outputs.
        IncompatibleArtifactError: the device cannot run the module: a different processor, format or TVM version.
        DeviceError: there is no server, it has a different version or other keys, it stopped responding (a device that
            loses power is detected within 30 s), or verification failed; the message names the step.
    """
    report = progress if progress is not None else lambda _: None
    data, manifest = _checked(path, trusted_keys)
    digest = bytes(data[_DIGEST]).hex()
    report("connect")
    with closing(_Device(address, credentials)) as device:
        device.check(manifest)
        previous, note = device.active()
        report("upload")
        device.upload(data)
        report("check")
        if device.call("check", "check") != digest:
            raise DeviceError(f"{address} received a file that differs from the one sent", "push again")
        report("reference run")
        began = time.monotonic()
        difference = float(device.call("verify", "reference run", seconds=run_seconds))
        longest = ANSWER_SECONDS + _SLOWER * (runs + 1) * (time.monotonic() - began)
        report("measure")
        p50, p99 = (float(each) for each in device.call(f"measure {runs}", "measuring", seconds=longest).split())
        report("switch")
        device.call("activate", "switch")
        return PushResult(difference, p50, p99, runs, previous, device.active()[0] or "", note)


def _checked(path: Path, trusted_keys: Sequence[Key] | None) -> tuple[memoryview, Manifest]:
    """A module's bytes and manifest. Raises as `push`."""
    data = read_mapped(path) if trusted_keys is None else read_private(path)
    artifact = read_artifact(path if trusted_keys is None else bytes(data), trusted_keys)
    if not artifact.reference_outputs:
        raise OptionError(f"{path} holds no reference input and output", "compile it with reference inputs")
    return data, artifact.manifest


@dataclass(frozen=True)
class DeviceTimes:
    """The result of `measure`.

    Attributes:
        difference: see `PushResult`.
        device: the GPU; "" if the module ran on the CPU.
        times: milliseconds, "p50" and "p99" of each kind: "ms" of runs including the copies of inputs and outputs; on a
        GPU
            also "device_ms" and "host_ms" of runs without them, by its clock and by the CPU's, and "graph_ms" and
            "graph_host_ms" of the run as one CUDA graph.
        graph_problem: why the run is not a CUDA graph; None if it is one, or there is no GPU.
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
    """Verify and time a module on a device server, like `push`, without changing the active module.

    Raises as `push`.
    """
    report = progress if progress is not None else lambda _: None
    data, manifest = _checked(path, trusted_keys)
    report("connect")
    with closing(_Device(address, credentials)) as device:
        device.check(manifest)
        report("upload")
        device.upload(data)
        device.call("check", "check")
        report("reference run")
        began = time.monotonic()
        difference = float(device.call("verify", "reference run", seconds=run_seconds))
        # Runs are timed in three ways, each with a few additional runs.
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
        """Send a request and return the response. Raises DeviceError that names the step."""
        what, hint = self._words(step)
        return self._connection.call(request, what=what, hint=hint, seconds=seconds)

    def _words(self, step: str) -> tuple[str, str]:
        return f"{self._address}: {step} failed", "the previously active module is still active there"
