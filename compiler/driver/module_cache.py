"""Caches compiled modules, so that a repeated call of `compile` loads the earlier result.

A key covers everything that a module depends on: the model's bytes, the options, the target (for `host`, the
processor), the user's tuning records, the versions of the packages involved in compilation, and the files of this
package. Models and options that a key cannot cover (graph passes, PyTorch modules, Relax modules, `Target` objects) are
compiled every time, and so are modules for other machines. The folder belongs to the user; damaged files and files that
belong to another user are not used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from compiler.errors import OptionError, StorageError, TensorwrightError
from compiler.support.cache import FOLDER_VARIABLE, cache_folder, cached, key_of
from compiler.support.processing import Processing
from targets.processors import usable_cores

if TYPE_CHECKING:
    import targets
    from compiler.driver.compile_options import CompileOptions
    from compiler.records.library import RecordSource
    from compiler.runtime import Module
    from compiler.support.options import ImportArguments

LIMIT_VARIABLE = "TENSORWRIGHT_CACHE_MB"
"""Environment variable: maximum total size in megabytes of the cached modules; 0 disables the cache."""
_DEFAULT_LIMIT_MB = 2048
COMMANDS = "commands"
"""Folder for the output of commands, for `cli.repeated`."""
_KIND, _MODULE, _FACTS = "modules", "module.twm", "facts.json"
_VERSIONS = tuple(
    f"{name}_"
    for name in ("apache_tvm", "apache_tvm_ffi", "numpy", "onnx", "torch", "transformers", "gguf", "ml_dtypes")
)
"""Prefixes of the metadata folders of distributions, in lower case and with underscores for hyphens."""
_EXTENSIONS = ("tensorwright.targets", "tensorwright.schedules", "tensorwright.onnx_operators")
_SOURCES = (".py", ".json", ".jsonl", ".h", ".c", ".cc", ".ubj")
_PACKAGES = ("compiler", "schedules", "targets", "tuning_logs")
_OWN = (LIMIT_VARIABLE, FOLDER_VARIABLE)
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Built:
    """A module, notes from the import for the user, and True if this machine can run the module itself."""

    module: Module
    notes: tuple[str, ...] = ()
    local: bool = True


@dataclass(frozen=True)
class Entry:
    """A module in the cache: its key, the model's name, the target, size in bytes, and time of last use (POSIX
    time)."""

    key: str
    model: str
    target: str
    nbytes: int
    used: float


@runtime_checkable
class Digested(Protocol):
    """A model in memory that can compute a digest of itself and its example inputs."""

    def digest(self) -> str | None:
        """The digest; None if it does not cover everything that the model computes."""


def limit_bytes() -> int:
    """Maximum size of the cache in bytes. Raises OptionError if the limit is not a number."""
    text = os.environ.get(LIMIT_VARIABLE, str(_DEFAULT_LIMIT_MB))
    if not text.isdecimal():
        raise OptionError(f"{LIMIT_VARIABLE}={text}: not a number of megabytes", "0 turns the cache off")
    return int(text) * 1_000_000


def key_of_call(
    source: object, target: str | targets.Target, options: CompileOptions, imports: ImportArguments
) -> str | None:
    """The key of a call of `compile`; None if its result is not cached."""
    limit = limit_bytes()
    if not limit or options.passes or options.dump or options.verify or not isinstance(target, str):
        return None
    try:
        model = source.digest() if isinstance(source, Digested) else _digest_of_model(source, limit)
        if model is None:
            return None
        if isinstance(source, Digested):  # its digest covers these arguments
            imports = {**imports, "example_inputs": None, "dynamic_shapes": None}
        settings = {each.name: getattr(options, each.name) for each in fields(options) if each.name != "progress"}
        if options.calibration is not None:
            settings["calibration"] = _digest(Path(options.calibration))
        named = options.adapters if isinstance(options.adapters, Mapping) else dict(enumerate(options.adapters))
        adapters = {name: _digest_of_model(each, limit) for name, each in named.items()}
        if None in adapters.values():
            return None
        settings["adapters"] = list(adapters.items())  # their order counts
        given = {name: value for name, value in imports.items() if value is not None}
        stamps = [_stamp(each) for each in record_files(options.records)]
        parts = [model, target, _plain(settings), _plain(given), stamps, environment()]
    except (OSError, TypeError, ValueError):
        return None  # the compilation reports the error in the file or argument
    return key_of(map(str, parts))


def reused(key: str, build: Callable[[], Built], report: Callable[[str], None]) -> Built:
    """The module for a key, from the cache or built now and cached.

    Concurrent processes build it only once. If the cache cannot be written, a note says so and the next compilation
    builds the module again.
    """
    found = _load(key)
    if found is not None:
        report("reuse an earlier compilation")
        return found
    results: list[Built] = []
    started = False

    def make(folder: Path) -> None:
        nonlocal started
        started = True
        built = build()
        results.append(built)
        if _is_kept(built):
            built.module.export(folder / _MODULE)
            manifest = built.module.manifest
            facts = {"model": manifest.model_name, "target": manifest.target.name, "notes": built.notes}
            (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    try:
        folder = cached(_KIND, key, make)
    except StorageError as error:
        if started and not results:
            raise
        report(f"not kept for the next compilation: {error.message}")
        return results[0] if results else build()
    if results:
        if not (folder / _MODULE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        _evict(limit_bytes())
        return results[0]
    return _load(key) or build()


def entries() -> list[Entry]:
    """The modules in the cache, most recently used first."""
    found = []
    for folder in _folders():
        with contextlib.suppress(OSError, ValueError):
            found.append(_entry(folder))
    return sorted(found, key=lambda each: -each.used)


def clear() -> int:
    """Remove all modules and return their total size in bytes."""
    shutil.rmtree(cache_folder() / COMMANDS, ignore_errors=True)
    freed = 0
    for folder in _folders():
        freed += _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def _folders() -> list[Path]:
    root = cache_folder() / _KIND
    # Entries that are being written have a hyphen in their names.
    return [each for each in root.iterdir() if each.is_dir() and "-" not in each.name] if root.is_dir() else []


def _entry(folder: Path) -> Entry:
    facts = _facts(folder)
    used = (folder / _MODULE).stat().st_mtime
    return Entry(folder.name, str(facts["model"]), str(facts["target"]), _size(folder), used)


def _facts(folder: Path) -> dict[str, object]:
    """Model, target and notes of an entry. Raises OSError or ValueError if they cannot be read."""
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or not {"model", "target", "notes"} <= facts.keys():
        raise ValueError(f"{folder / _FACTS} is damaged")
    return facts


def _size(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.iterdir() if each.is_file())


def _load(key: str) -> Built | None:
    """The entry for a key; None if there is none. Entries that cannot be read are removed."""
    folder = cache_folder() / _KIND / key
    path = folder / _MODULE
    try:
        status = path.stat()
    except OSError:
        return None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        return None
    from compiler.runtime.loading import load

    try:
        notes = _facts(folder)["notes"]
        module = load(path)
        os.utime(path)
    except (OSError, ValueError, TensorwrightError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return Built(module, tuple(map(str, notes)) if isinstance(notes, list) else ())


def _is_kept(built: Built) -> bool:
    """False for modules for another machine, and for modules that would fill half of the cache by themselves."""
    artifact = built.module.artifact
    parameters = sum(each.nbytes for each in artifact.parameters.values())
    return built.local and 2 * (parameters + len(artifact.library)) <= limit_bytes()


def _evict(limit: int) -> None:
    """Remove the least recently used modules until the rest fits."""
    sizes = {folder: _size(folder) for folder in _folders()}
    ages: dict[Path, float] = {}
    for folder in sizes:
        with contextlib.suppress(OSError):
            ages[folder] = (folder / _MODULE).stat().st_mtime
    total = sum(sizes[folder] for folder in ages)
    for folder in sorted(ages, key=lambda each: ages[each]):
        if total <= limit:
            return
        shutil.rmtree(folder, ignore_errors=True)
        total -= sizes[folder]


def _digest_of_model(source: object, limit: int) -> str | None:
    """A digest of all of a model's files, or of its bytes; None if it has neither or is larger than the cache."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(source, onnx.ModelProto):
        return hashlib.sha256(source.SerializeToString(deterministic=True)).hexdigest()
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    files = model_files(path)
    if sum(each.stat().st_size for each in files) > limit:
        return None
    # The file's name becomes the module's name.
    return " ".join([path.stem, *(f"{each.name} {_digest(each)}" for each in files)])


def model_files(path: Path) -> list[Path]:
    """The files in a folder, or a file and the weight files next to it if it is an ONNX model. Raises OSError if the
    files cannot be read, and ValueError if the model refers to a file in a form that its exporters do not write."""
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.is_file())
    if path.suffix != ".onnx" or not path.is_file():
        return [path]
    data = path.read_bytes()
    # StringStringEntryProto: field 1 is the key, field 2 the value. Importing onnx to parse it would take longest.
    names = {data[each.end() : each.end() + each[1][0]] for each in _LOCATION.finditer(data)}
    if len(_LOCATION.findall(data)) != data.count(_LOCATION_KEY):
        raise ValueError(f"{path} names its weights in an unknown form")
    return [path, *(path.parent / os.fsdecode(each) for each in sorted(names))]


_LOCATION_KEY = b"\x0a\x08location"
_LOCATION = re.compile(_LOCATION_KEY + rb"\x12([\x01-\x7f])", re.DOTALL)


def _digest(path: Path) -> str:
    if not path.is_file():  # a device or a pipe, which may never end
        raise OSError(f"{path} is not a file")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _plain(value: object) -> object:
    """Text that is equal only for equal values; arrays are replaced by a digest. Raises TypeError for other objects."""
    np = sys.modules.get("numpy")
    if np is not None and isinstance(value, np.ndarray | np.generic):
        array = np.ascontiguousarray(value)
        return f"{array.dtype}{array.shape}{hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, Processing):
        return repr(value)
    if isinstance(value, Mapping):
        return repr(sorted((repr(key), _plain(item)) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return repr([_plain(item) for item in value])
    if value is None or isinstance(value, str | int | float | bool | Path):
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no plain form")


def record_files(source: RecordSource) -> list[Path]:
    """Tuning record files that a compilation may read."""
    if source is False:
        return []
    if isinstance(source, str | Path):
        chosen: Iterable[Path] = [Path(source)]
    elif isinstance(source, list | tuple):
        chosen = [Path(each) for each in source]
    else:
        from compiler.records.folders import user_folder

        chosen = [user_folder()]
    return [file for each in chosen for file in _files_below(each)]


def _files_below(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(each for each in path.rglob("*") if each.is_file())
    elif path.exists():
        yield path


def _stamp(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def environment() -> str:
    """Environment that every compilation in this process depends on: processor, versions, this package's files,
    settings."""
    ours = ("TENSORWRIGHT_", "TVM_")
    settings = sorted(each for each in os.environ.items() if each[0].startswith(ours) and each[0] not in _OWN)
    return repr((_installation(), _processor(), usable_cores(), settings))


@functools.cache
def _processor() -> str:
    """The description of the first processor, without values that change constantly."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(line for line in lines if not line.startswith(("cpu MHz", "bogomips")))


@functools.cache
def _installation() -> str:
    """Versions of the packages involved in compilation, other packages' extensions, and this package's files.

    They are read directly from the folders: `importlib.metadata` parses the files of every distribution, which takes as
    long as loading a module.
    """
    root = Path(__file__).resolve().parents[2]
    files = [stamp for package in _PACKAGES for stamp in _source_stamps(str(root / package))]
    return key_of([repr((sys.version_info, sorted(_distributions()), sorted(files)))])


def _distributions() -> Iterator[tuple[str, str]]:
    """Names and versions of the installed distributions involved in compilation, and of those that extend this package
    with entry points."""
    for folder in sys.path:
        with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as listed:
            for entry in listed:
                if not entry.name.endswith((".dist-info", ".egg-info")):
                    continue
                if entry.name.lower().replace("-", "_").startswith(_VERSIONS):
                    yield entry.name, ""
                with contextlib.suppress(OSError):
                    points = Path(entry.path, "entry_points.txt").read_text(encoding="utf-8")
                    if any(group in points for group in _EXTENSIONS):
                        yield entry.name, points


def _source_stamps(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as listed:
        for entry in listed:
            if entry.is_dir():
                yield from _source_stamps(entry.path)
            elif entry.name.endswith(_SOURCES):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns
