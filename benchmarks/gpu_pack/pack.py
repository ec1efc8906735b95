"""Build a pack: entries in order of importance until the limit is reached, with programs and scripts."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_pack.build import Written, write_entry
from benchmarks.gpu_pack.driver import write_programs
from benchmarks.gpu_pack.entries import PackEntry
from compiler.errors import OptionError, StorageError, TensorwrightError
from targets.cuda.target import CudaTarget
from targets.errors import TargetError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SCRIPTS = ("generator.py", "nets.py", "peers.py")
MAX_OPERATIONS = 10e9  # limit for simulated nets: ResNet-50 is simulated, ViT-B/16 is not
_NOTE = '"""Python of the project that a pack needs: the generator, the nets, and the script of the peers."""\n'


@dataclass(frozen=True)
class Made:
    """The result for an entry; `problem`: reason why it is not in the pack."""

    name: str
    seconds: float
    written: Written | None = None
    problem: str | None = None


def parse_size(text: str) -> int:
    """Parse a size: "60MB", "1.5G" or "4096" bytes. Raises OptionError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if match is None:
        raise OptionError(f"{text!r} is not a size", "give one as 60MB")
    return int(float(match[1]) * _UNITS[match[2]])


def make_pack(
    folder: Path,
    target: CudaTarget,
    entries: Iterable[PackEntry],
    limit: int,
    report: Callable[[Made], None],
    max_operations: float = MAX_OPERATIONS,
) -> int:
    """Write a pack, or continue an interrupted one: its entries for the same target are kept.

    Args:
        limit: total bytes of all files. An entry that does not fit is skipped, and smaller ones after it are tried.
        report: called with the result for each entry.
        max_operations: limit for simulated entries (`write_entry`).

    Returns:
        The number of entries that could not be built.

    Raises:
        StorageError: the folder cannot be written, or contains something else.
        OptionError: programs and libraries alone exceed the limit.
    """
    try:
        _start(folder, target)
        if (size := _size(folder)) > limit:
            raise OptionError(f"programs and libraries alone take {size} bytes", f"give --limit above {limit}")
        failed = 0
        for entry in entries:
            made = _made(entry, folder, target, limit, max_operations if entry.records else 0)
            failed += made.written is None and made.problem != _TOO_BIG
            report(made)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error}", "free space, or give another folder") from error
    return failed


_TOO_BIG = "it does not fit"


def _start(folder: Path, target: CudaTarget) -> None:
    """The pack's programs and scripts."""
    about = folder / "pack.json"
    if about.exists():
        found = json.loads(about.read_text(encoding="utf-8"))["target"]
        if found != target.name:
            raise StorageError(f"{folder} is a pack for {found}", "give another folder")
    elif folder.exists() and any(folder.iterdir()):
        raise StorageError(f"{folder} exists and is not a pack", "give a new folder")
    write_programs(target, folder)
    (folder / "entries").mkdir(exist_ok=True)
    here = Path(__file__).parent
    script = folder / "run"
    script.write_text((here / "run.sh").read_text(encoding="utf-8"), encoding="utf-8")
    script.chmod(0o755)
    package = folder / "python" / "benchmarks" / "gpu_pack"
    package.mkdir(parents=True, exist_ok=True)
    for init in (package.parent, package):
        (init / "__init__.py").write_text(_NOTE, encoding="utf-8")
    for name in _SCRIPTS:
        shutil.copy(here / name, package)
    if not about.exists():
        _describe(folder, target, [])


def _made(entry: PackEntry, folder: Path, target: CudaTarget, limit: int, max_operations: float) -> Made:
    start, place = time.perf_counter(), folder / "entries" / entry.name
    listed = json.loads((folder / "pack.json").read_text(encoding="utf-8"))["entries"]
    if any(each["name"] == entry.name for each in listed):
        return Made(entry.name, 0.0, Written(_size(place), {}, 0, 0))
    shutil.rmtree(place, ignore_errors=True)
    try:
        written = write_entry(entry.name, entry.make(), target, folder, max_operations=max_operations)
    except (TensorwrightError, TargetError) as error:
        shutil.rmtree(place, ignore_errors=True)
        return Made(entry.name, time.perf_counter() - start, problem=error.message)
    except OSError:
        raise
    except Exception as error:  # an error in a library affects one net: the others are still built
        shutil.rmtree(place, ignore_errors=True)
        where = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return Made(entry.name, time.perf_counter() - start, problem=problem)
    if _size(folder) > limit:
        shutil.rmtree(place)
        return Made(entry.name, time.perf_counter() - start, problem=_TOO_BIG)
    _describe(folder, target, [*listed, {"name": entry.name, "rest": int(entry.rest)}])
    return Made(entry.name, time.perf_counter() - start, written)


def _describe(folder: Path, target: CudaTarget, listed: list[dict[str, object]]) -> None:
    """Write the list of entries, which is always complete. A continued pack keeps its name."""
    about = folder / "pack.json"
    name = hashlib.sha256(f"{target.name}{time.time_ns()}".encode()).hexdigest()[:12]
    if about.exists():
        name = json.loads(about.read_text(encoding="utf-8"))["id"]
    text = {
        "id": name,
        "target": target.name,
        "architecture": target.architecture,
        "compute_capability": target.machine.compute_capability,
        "simulated": int(target.simulated),
        "entries": listed,
    }
    fresh = folder / "pack.json.new"
    fresh.write_text(json.dumps(text, indent=1), encoding="utf-8")
    fresh.replace(about)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
