"""Checks that a device server is compatible with this version, and that its device can run a module or kernels.

Checked before anything is uploaded: the server describes itself when a session starts (`DescribeServer` in
cpp/device_session.cc).
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable
from dataclasses import dataclass

from compiler.artifact import Manifest
from compiler.device.connection import Connection, NoDeviceServerError
from compiler.device.credentials import Credentials
from compiler.errors import DeviceError, IncompatibleArtifactError
from targets import Target
from targets.cpuinfo import normalized

PROTOCOL = 2  # version of the server's functions; incremented when one changes its behavior
NEW_PROGRAMS = "create a new bundle (tensorwright bundle) and start its tensorwright-server on the device"


@dataclass(frozen=True)
class GraphicsProcessor:
    """A GPU of a server: its name, and its compute capability as 10 * major + minor."""

    name: str
    compute_capability: int


@dataclass(frozen=True)
class ServerVersions:
    """A device server's description of itself.

    Attributes:
        format: the newest module format that it reads.
        tensorwright, tvm: the versions that it was built from.
        features: features of its processor, by their names in manifests.
        kernels: whether it runs kernels of a tuner, which are not signed.
        devices: its GPUs.
        device_problem: why modules cannot use those; empty if they can.
    """

    protocol: int
    format: int
    tensorwright: str
    tvm: str
    architecture: str
    features: frozenset[str]
    kernels: bool = True
    devices: tuple[GraphicsProcessor, ...] = ()
    device_problem: str = "it has none"


def ask_versions(connection: Connection) -> ServerVersions:
    """Read the description of a session's server. Raises DeviceError if it uses a different protocol version."""
    address, answer = connection.address, connection.description
    try:
        fields = json.loads(answer)
        protocol, version = int(fields["protocol"]), str(fields["tensorwright"])
        if protocol != PROTOCOL:
            raise _other_protocol(address, protocol, version)
        features = frozenset(map(normalized, fields["features"]))
        return ServerVersions(
            protocol,
            int(fields["format"]),
            version,
            str(fields["tvm"]),
            str(fields["architecture"]),
            features,
            fields["kernels"] is True,
            tuple(
                GraphicsProcessor(str(each["name"]), int(each["compute_capability"]))
                for each in fields.get("devices", ())
            ),
            str(fields.get("device_problem", "its server is too old to report GPUs")),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(
            f"{address}: asking for the server's version failed: it answered {answer[:200]!r}", NEW_PROGRAMS
        ) from error


def connect(address: str, credentials: Credentials | None = None) -> Connection:
    """Open a session for modules.

    Raises:
        OptionError: the address is not valid.
        DeviceError: nobody answers there, the server rejects this client, is older than its protocol, or is not a
            tensorwright-server.
    """
    try:
        return Connection(address, credentials)
    except NoDeviceServerError as error:
        raise DeviceError(
            f"the server at {address} does not report its version: it is older than this Tensorwright, or is not a "
            "tensorwright-server",
            NEW_PROGRAMS,
        ) from error


def _other_protocol(address: str, protocol: int, version: str) -> DeviceError:
    older = protocol < PROTOCOL
    return DeviceError(
        f"the server at {address} runs Tensorwright {version} with protocol {protocol}, "
        f"but this version uses protocol {PROTOCOL}",
        NEW_PROGRAMS if older else f"update Tensorwright here to {version}",
    )


def check_runs_there(manifest: Manifest, server: ServerVersions, address: str) -> None:
    """Raise IncompatibleArtifactError, with the reason, unless the device can run the module."""
    target = manifest.target
    device = f"the device at {address}"
    if manifest.format_version > server.format:
        raise IncompatibleArtifactError(
            f"the module has format version {manifest.format_version}, and the server at {address} (Tensorwright "
            f"{server.tensorwright}) reads up to {server.format}",
            NEW_PROGRAMS,
        )
    if target.architecture != server.architecture:
        raise IncompatibleArtifactError(
            f"the module is for {target.architecture} (target {target.name}), and {device} is {server.architecture}",
            "compile it for the device's target",
        )
    if missing := _missing(target.required_cpu_features, server):
        raise IncompatibleArtifactError(
            f"the module needs processor features that {device} lacks: {', '.join(missing)} (it was compiled for "
            f"target {target.name})",
            "compile it for the device's target, or for a more general one",
        )
    if problem := _device_problem(target.details.get("device"), server):
        raise IncompatibleArtifactError(
            f"the module (target {target.name}) does not run on {device}: {problem[0]}", problem[1]
        )
    if manifest.versions.tvm != server.tvm:
        raise IncompatibleArtifactError(
            f"the module was compiled with TVM {manifest.versions.tvm}, and the server at {address} has TVM "
            f"{server.tvm}",
            NEW_PROGRAMS,
        )


def check_kernels_run_there(target: Target, server: ServerVersions, address: str) -> None:
    """Raise DeviceError, with the reason, unless the device can run kernels built for a target."""
    if not server.kernels:
        raise DeviceError(
            f"the server at {address} runs only signed modules, and kernels being tuned are not signed",
            "start it with --allow-tuning while tuning",
        )
    device, hint = f"the device at {address}", "choose the device's own target, or a more general one"
    if target.architecture != server.architecture:
        raise DeviceError(
            f"target {target.name!r} is for {target.architecture}, and {device} is {server.architecture}", hint
        )
    if missing := _missing(target.required_features, server):
        raise DeviceError(
            f"target {target.name!r} needs processor features that {device} lacks: {', '.join(missing)}", hint
        )
    if problem := _device_problem(target.describe().get("device"), server):
        raise DeviceError(f"kernels of target {target.name!r} do not run on {device}: {problem[0]}", problem[1])
    here = importlib.metadata.version("apache-tvm")
    if here != server.tvm:
        raise DeviceError(
            f"kernels are compiled with TVM {here}, and the server at {address} has TVM {server.tvm}", NEW_PROGRAMS
        )


def _device_problem(needed: object, server: ServerVersions) -> tuple[str, str] | None:
    """Reason why a device cannot run code for the target's GPU, and the remedy."""
    if not isinstance(needed, dict):
        return None
    if needed.get("simulated"):
        return "it holds no machine code for a GPU", "compile it for one"
    least = int(needed.get("compute_capability", 0))
    if server.device_problem:
        problem, _, hint = server.device_problem.partition("\n  hint: ")
        return (problem, hint or "start the tensorwright-server of a bundle for a GPU on a machine with one")
    if any(each.compute_capability >= least for each in server.devices):
        return None
    has = ", ".join(f"{each.name} ({each.compute_capability / 10})" for each in server.devices)
    return f"it needs compute capability {least / 10} or newer, but the device has {has}", "compile it for that device"


def _missing(features: Iterable[str], server: ServerVersions) -> list[str]:
    return [name for name in features if normalized(name) not in server.features]


__all__ = [
    "NEW_PROGRAMS",
    "PROTOCOL",
    "GraphicsProcessor",
    "ServerVersions",
    "ask_versions",
    "check_kernels_run_there",
    "check_runs_there",
    "connect",
]
