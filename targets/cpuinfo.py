"""The features of this machine's processor, as the operating system reports them.

Features have LLVM's names. TVM is not imported: the runtime on a device uses this, too.
"""

from __future__ import annotations

import ctypes
import platform
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Features for which Linux and LLVM use different names.
_LLVM_NAMES = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "pclmulqdq": "pclmul",
    "sha_ni": "sha",
    "lahf_lm": "sahf",
    "rdrand": "rdrnd",
    "avx_vnni": "avxvnni",
    "avx_vnni_int8": "avxvnniint8",
    "avx512vbmi": "avx512vbmi",
    "asimd": "neon",
    "asimddp": "dotprod",
    "asimdhp": "fullfp16",
    "asimdfhm": "fp16fml",
    "asimdrdm": "rdm",
    "fcma": "complxnum",
    "jscvt": "jsconv",
    "atomics": "lse",
}
# Features that a module may require and that Linux lists under another name or as part of another feature.
_MORE_NAMES = {
    "3dnowprefetch": "prfchw",
    "fpu": "x87",
    "lm": "64bit",
    "fp": "fparmv8",
    "crc32": "crc",
    "sse4_2": "crc32",
    "avx512f": "evex512",
}
_ARCHITECTURES = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}


@dataclass(frozen=True)
class Caches:
    """Bytes of the data caches: of one core (L1, L2) and shared (L3); None if the system does not report them."""

    l1: int | None = None
    l2: int | None = None
    l3: int | None = None


def architecture() -> str:
    """The processor architecture as LLVM names it: "x86_64", "aarch64", ..."""
    return llvm_architecture(platform.machine())


def llvm_architecture(name: str) -> str:
    """LLVM's name of an architecture that operating systems name differently: "x86_64" for "AMD64"."""
    return _ARCHITECTURES.get(name.lower(), name.lower())


def parse_features(cpuinfo: str) -> frozenset[str]:
    """The features in a /proc/cpuinfo text, under LLVM's names, that every listed processor has."""
    sets = []
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):
            sets.append(frozenset(_llvm_name(flag) for flag in value.split()))
    return frozenset.intersection(*sets) if sets else frozenset()


def _llvm_name(flag: str) -> str:
    if flag in _LLVM_NAMES:
        return _LLVM_NAMES[flag]
    if flag.startswith("avx512_"):
        return "avx512" + flag[len("avx512_") :]
    return flag.replace("_", "-") if flag.startswith("amx") else flag


@cache
def reported_features() -> frozenset[str]:
    """The features that the system lists; empty if it lists none."""
    try:
        return parse_features(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return frozenset()


@cache
def features() -> frozenset[str]:
    """The features of this machine that this process may use; empty if the system does not report them (nothing may be
    assumed then)."""
    found = reported_features()
    return found if not found >= _TILES or allows_tiles() else frozenset(each for each in found if not _of_tiles(each))


_TILES = frozenset({"amx-tile"})
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18  # Linux's asm/prctl.h and asm/fpu/types.h, x86-64


@cache
def allows_tiles() -> bool:
    """Ask Linux to permit this process (all its threads) to use AMX's tile registers; True if granted.

    Containers, gVisor and kernels before 5.16 may refuse.
    """
    if architecture() != "x86_64" or platform.system() != "Linux":
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XTILEDATA) == 0


def _of_tiles(feature: str) -> bool:
    return feature.startswith("amx")


def supports(feature: str) -> bool:
    """True if this processor has a feature, by LLVM's or Linux's name, with "_", "-", "." or no separators."""
    return normalized(feature) in _known_names()


def normalized(feature: str) -> str:
    """A feature's name without the separators that differ between spellings: "avx512_vnni" -> "avx512vnni"."""
    return re.sub(r"[-_.]", "", feature.lower()).lstrip("+")


@cache
def _known_names() -> frozenset[str]:
    """The normalized names, Linux's and LLVM's, of this processor's features."""
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    flags = match.group(1).split() if match else []
    names = {
        *flags,
        *(_llvm_name(flag) for flag in flags),
        *(_MORE_NAMES[flag] for flag in flags if flag in _MORE_NAMES),
    }
    allowed = not any(map(_of_tiles, names)) or allows_tiles()
    return frozenset(normalized(name) for name in names if allowed or not _of_tiles(name))


@cache
def model_name() -> str:
    """The processor's name, for reports."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or "unknown"
    found = re.search(r"^model name\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or "unknown"


def parse_size(text: str) -> int | None:
    """Bytes of a size in Linux notation ("32K", "1M"); None if it is not one."""
    found = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    if not found:
        return None
    return int(found.group(1)) << {"": 0, "K": 10, "M": 20, "G": 30}[found.group(2)]


def caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> Caches:
    """The cache sizes that the kernel reports for the first processor."""
    sizes: dict[int, int] = {}
    for folder in sorted(root.glob("index*")) if root.is_dir() else []:
        try:
            kind = (folder / "type").read_text().strip()
            level = int((folder / "level").read_text())
            size = parse_size((folder / "size").read_text())
        except (OSError, ValueError):
            continue
        if kind in ("Data", "Unified") and size:
            sizes[level] = size
    return Caches(sizes.get(1), sizes.get(2), sizes.get(3))
