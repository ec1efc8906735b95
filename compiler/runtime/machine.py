"""Can this machine run that module? Checked before any of its code is loaded."""

from __future__ import annotations

import os
import platform
import re
from functools import cache
from pathlib import Path

from compiler.artifact.manifest import Manifest
from compiler.errors import IncompatibleArtifactError
from compiler.runtime.tvm_runtime import runtime_version

# What Linux calls a feature in /proc/cpuinfo, where LLVM calls it otherwise (both without "_", "-" and ".").
_LINUX_TO_LLVM = {
    "pni": "sse3",
    "abm": "lzcnt",
    "lahflm": "sahf",
    "shani": "sha",
    "pclmulqdq": "pclmul",
    "rdrand": "rdrnd",
    "3dnowprefetch": "prfchw",
    "bmi1": "bmi",
    "fpu": "x87",
    "lm": "64bit",
    "asimd": "neon",
    "fp": "fparmv8",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "atomics": "lse",
    "asimdfhm": "fp16fml",
    "asimdrdm": "rdm",
    "fcma": "complxnum",
    "jscvt": "jsconv",
    "crc32": "crc",
}
_IMPLIED = {"sse42": "crc32", "avx512f": "evex512"}
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}


def architecture() -> str:
    """This machine's instruction set, as Linux names it: "x86_64", "aarch64"."""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def normalized(feature: str) -> str:
    """A feature's name without what differs between LLVM's spelling and Linux's: "avx512_vnni" -> "avx512vnni"."""
    return re.sub(r"[-_.]", "", feature.lower()).lstrip("+")


@cache
def cpu_features() -> frozenset[str]:
    """The normalized names, Linux's and LLVM's, of what this processor can do."""
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    found = {normalized(flag) for flag in match.group(1).split()} if match else set()
    found |= {_LINUX_TO_LLVM[flag] for flag in found if flag in _LINUX_TO_LLVM}
    return frozenset(found | {_IMPLIED[flag] for flag in found if flag in _IMPLIED})


def check_machine(manifest: Manifest) -> None:
    """Raise IncompatibleArtifactError, naming what is missing, unless this machine and engine can run the module."""
    target = manifest.target
    wanted = _ARCHITECTURES.get(target.architecture.lower(), target.architecture.lower())
    if wanted != architecture():
        raise IncompatibleArtifactError(
            f"the module was compiled for {target.architecture} (target {target.name!r}), "
            f"and this machine is {architecture()}",
            "compile the model for this machine's target",
        )
    missing = [feature for feature in target.required_cpu_features if normalized(feature) not in cpu_features()]
    if missing:
        raise IncompatibleArtifactError(
            f"the module needs processor features that this machine lacks: {', '.join(missing)} "
            f"(it was compiled for target {target.name!r})",
            "compile the model for this machine's target, or for a more general one",
        )
    if runtime_version() not in (None, manifest.versions.tvm):
        raise IncompatibleArtifactError(
            f"the module was compiled with TVM {manifest.versions.tvm}, and this machine has TVM {runtime_version()}",
            f"install apache-tvm=={manifest.versions.tvm}, or compile the model again",
        )


def usable_cores() -> int:
    """Physical cores that this process may use: its affinity and its control group's quota respected."""
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:
        return os.cpu_count() or 1
    cores = {_core_of(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def usable_processors() -> int:
    """Logical processors that this process may use: at least as many as `usable_cores`."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _core_of(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """Whole cores that the control group (version 2) grants; a large number where there is no limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return 1 << 16
    return 1 << 16 if quota == "max" else -(-int(quota) // int(period))
