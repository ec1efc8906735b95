"""Parse shapes, arrays, sizes and passes of the command line."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from compiler.errors import InputError, OptionError, StorageError

if TYPE_CHECKING:
    import numpy as np

    from compiler.cli.options import ImportOptions
    from compiler.support.options import ImportArguments

RANDOM = "random"


def parse_imports(model: Path, given: ImportOptions) -> ImportArguments:
    """Return the arguments of `compile` for these options."""
    fixed = parse_fixed(model, given.shape, given.constant)
    kept: Any = {"state": parse_state(given.state or []), "capacity": parse_capacity(given.capacity)}
    return fixed | kept


def parse_fixed(model: Path, shape: Sequence[str] | None, constant: Sequence[str] | None) -> Any:
    """Return the arguments `shapes` and `constants` of functions that import a model."""
    from compiler.inspection.model_inspection import model_inputs

    specs: dict[str, Any] = {each.name: each for each in model_inputs(model)} if constant else {}
    return {
        "shapes": parse_shapes(shape or []) or None,
        "constants": parse_arrays(constant or [], "--constant", specs) or None,
    }


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int | str, ...]]:
    """Parse `input_ids=batch,64` or `input_ids=batchx64` to `{"input_ids": ("batch", 64)}`; a scalar is `name=`."""
    shapes = {}
    for name, value in _pairs(texts, "--shape", "NAME=SIZE,SIZE,... as in input_ids=batch,64 or x=1x3x224x224"):
        shapes[name] = tuple(_size(size.strip(), name) for size in _split_sizes(value))
    return shapes


def _split_sizes(text: str) -> list[str]:
    """Split sizes at commas, or at each x next to a number (max_length is one name)."""
    if not text.strip():
        return []
    if "," not in text and re.search(r"\dx|x\d", text):
        return text.split("x")
    return text.split(",")


def _size(text: str, name: str) -> int | str:
    if text.isdecimal():
        return int(text)
    if text.isidentifier():
        return text
    raise OptionError(
        f"--shape {name}: {text!r} is not a size",
        "a size is a number, or a name for a dynamic dimension (batch); separate names by commas",
    )


def parse_sizes(texts: Sequence[str]) -> dict[str, list[int | tuple[int, ...]]]:
    """Parse `batch=1,8` to `{"batch": [1, 8]}`, and `x=1x3x224x224` to `{"x": [(1, 3, 224, 224)]}`."""
    form = "DIMENSION=SIZE,SIZE,... as in batch=1,8, or INPUT=SHAPE,... as in x=1x3x224x224,8x3x224x224"
    sizes: dict[str, list[int | tuple[int, ...]]] = {}
    for name, value in _pairs(texts, "--sizes", form):
        for text in value.split(","):
            numbers = text.strip().split("x")
            if not all(each.isdecimal() for each in numbers):
                raise OptionError(f"--sizes {name}: {text!r} is neither a size nor a shape", f"write {form}")
            shape = tuple(map(int, numbers))
            sizes.setdefault(name, []).append(shape if len(shape) > 1 else shape[0])
    return sizes


def parse_state(texts: Sequence[str]) -> dict[str, str] | list[str] | None:
    """Parse `state=` of `compile`: `past.*=present.*` pairs inputs of an ONNX model with outputs, and `cache` names an
    input that a PyTorch model writes to; a single `none` keeps no states.

    Raises OptionError if both forms, or `none` and names, are mixed.
    """
    if not texts:
        return None
    if list(texts) == ["none"]:
        return {}
    paired = [text for text in texts if "=" in text]
    if not paired and "none" not in texts:
        return list(texts)
    form = "INPUT=OUTPUT for ONNX models, as in past.*=present.*, or NAME for PyTorch models, or none"
    if len(paired) < len(texts):
        raise OptionError(f"--state: {', '.join(texts)} mix several forms", f"write {form}")
    return dict(_pairs(texts, "--state", form))


def parse_capacity(text: str | None) -> int | str | None:
    """Parse `capacity=` of `compile`: a number of rows, or the name of a symbolic dimension."""
    return int(text) if text is not None and text.isdecimal() else text


def split_shapes(shapes: Mapping[str, tuple[int | str, ...]], specs: Sequence[Any]) -> dict[str, int]:
    """Return sizes of a module's symbolic dimensions, from `--shape INPUT=...` or `--shape DIMENSION=SIZE`. Raises
    OptionError if a name is unknown, the rank differs, or a fixed dimension is given another size."""
    by_name = {spec.name: spec.shape for spec in specs}
    symbols = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name in by_name:
            _match(name, by_name[name], shape, sizes)
        elif name in symbols and len(shape) == 1 and isinstance(shape[0], int):
            sizes[name] = shape[0]
        else:
            known = ", ".join([*by_name, *sorted(symbols)])
            raise OptionError(
                f"--shape {name}: no input and no dimension of the module has that name", f"it has: {known}"
            )
    return sizes


def divide_shapes(
    shapes: Mapping[str, tuple[int | str, ...]], inputs: Collection[str]
) -> tuple[dict[str, tuple[int | str, ...]], dict[str, int]]:
    """Split the values of `--shape` for a model into shapes of its inputs and sizes of its dynamic dimensions.

    A name that is not an input stays among the shapes unless it has one fixed size; compiling then reports the error.
    """
    sizes = {
        name: shape[0]
        for name, shape in shapes.items()
        if inputs and name not in inputs and len(shape) == 1 and isinstance(shape[0], int)
    }
    return {name: shape for name, shape in shapes.items() if name not in sizes}, sizes


def _match(name: str, described: Sequence[int | str], shape: Sequence[int | str], sizes: dict[str, int]) -> None:
    expected_shape = ", ".join(map(str, described))
    if len(shape) != len(described):
        raise OptionError(f"--shape {name}: {len(shape)} sizes for an input of shape [{expected_shape}]")
    for size, declared in zip(shape, described, strict=True):
        if isinstance(declared, int) and size != declared:
            raise OptionError(
                f"--shape {name}: the module was compiled for shape [{expected_shape}]", "compile it again to change it"
            )
        if isinstance(declared, str) and isinstance(size, int):
            sizes[declared] = size


def parse_arrays(texts: Sequence[str], option: str, specs: Mapping[str, Any]) -> dict[str, Any]:
    """Parse `name=file.npy`, `name=3`, `name=[1, 2]` or `file.npz` to arrays by name; `name=random` stays a string.

    Literals get the data type in `specs` (objects with `dtype`), files keep theirs.
    """
    arrays: dict[str, Any] = {}
    for text in texts:
        if "=" not in text and text.endswith(".npz"):
            arrays.update(load_archive(Path(text), option))
    rest = [text for text in texts if not ("=" not in text and text.endswith(".npz"))]
    for name, value in _pairs(rest, option, "NAME=FILE.npy, NAME=VALUE (3, 0.5, [1, 2]), or FILE.npz"):
        if value == RANDOM and option == "--input":
            _known(name, specs, option)
            arrays[name] = RANDOM
        elif value.endswith(".npy"):
            arrays[name] = _load_array(Path(value), option)
        elif value.endswith(".npz"):
            archive = load_archive(Path(value), option)
            if name not in archive:
                raise InputError(f"{option} {name}: {value} has no array of that name", f"it has: {', '.join(archive)}")
            arrays[name] = archive[name]
        else:
            arrays[name] = _literal(name, value, option, specs.get(name))
    return arrays


def _known(name: str, specs: Mapping[str, Any], option: str) -> None:
    if name not in specs:
        raise InputError(f"{option} {name}: no input has that name", f"the inputs are: {', '.join(specs) or 'none'}")


def _load_array(path: Path, option: str) -> np.ndarray:
    import numpy as np

    try:
        loaded: np.ndarray = np.load(path, allow_pickle=False)
        return loaded
    except OSError as error:
        raise StorageError(f"{option}: {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{option}: {path} is not an .npy file of plain numbers: {error}") from error


def load_archives(paths: Sequence[Path] | None, option: str) -> list[dict[str, np.ndarray]] | None:
    """Load the arrays of each file; None if none is given. Raises as `load_archive`."""
    return [load_archive(each, option) for each in paths] if paths else None


def load_archive(path: Path, option: str) -> dict[str, np.ndarray]:
    """Load the arrays of an .npz file by name. Raises InputError or StorageError that names `option`."""
    import zipfile

    import numpy as np

    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise InputError(
                f"{option}: {path} is a single array, and does not say of which input",
                "write an archive: numpy.savez(path, NAME=array), NAME being the input's",
            )
        with archive:
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise StorageError(f"{option}: {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        reason = "" if "pickle" in str(error) else f": {error}"  # numpy's advice would run code of the file
        raise InputError(f"{option}: {path} is not an .npz file of plain numbers{reason}") from error


def _literal(name: str, text: str, option: str, spec: Any) -> np.ndarray:
    import numpy as np

    words = {"true": "True", "false": "False"}
    try:
        value = ast.literal_eval(words.get(text.strip().lower(), text))
        array = np.asarray(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf":
        hint = "a value is a number, true, false, a list such as [1, 2], or a .npy or .npz file"
        raise OptionError(f"{option} {name}: {text!r} is neither a file nor a value", hint)
    if spec is None:
        return array.astype(np.float32) if array.dtype == np.float64 else array
    return _cast(array, spec, option)


def _cast(array: np.ndarray, spec: Any, option: str) -> np.ndarray:
    """Cast a literal to the data type of an input; raise an error if the value changes."""
    import numpy as np

    from compiler.artifact.dtypes import ELEMENT_TYPES

    dtype = ELEMENT_TYPES[spec.dtype].numpy if spec.dtype in ELEMENT_TYPES else np.dtype(spec.dtype)
    if array.dtype.kind == "f" and dtype.kind in "iub" and not np.array_equal(array, np.rint(array)):
        raise InputError(f"{option} {spec.name}: {array.tolist()} does not fit an input of {spec.dtype}")
    cast = array.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(cast.astype(array.dtype), array):
        raise InputError(f"{option} {spec.name}: {array.tolist()} is out of the range of {spec.dtype}")
    return cast


def parse_adapters(texts: Sequence[str]) -> list[str] | dict[str, str]:
    """Parse folders of adapters to merge, or NAME=DIR of adapters to store separately, for `compile(adapters=)`."""
    named = [text for text in texts if "=" in text and not Path(text).is_dir()]
    if named and len(named) < len(texts):
        raise OptionError("--adapter merges folders (DIR) or keeps them (NAME=DIR), not both at once")
    return dict(_pairs(texts, "--adapter", "NAME=DIR")) if named else list(texts)


def parse_passes(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `before:NAME=module:function` or `before:NAME=path.py:function` to the mapping for `compile(passes=)`."""
    passes = {}
    for key, value in _pairs(texts, "--pass", "before:NAME=module:function (or after:, instead-of:)"):
        passes[key] = None if value == "none" else _load_function(value)
    return passes


def _load_function(text: str) -> Any:
    module_name, _, name = text.rpartition(":")
    if not module_name:
        return text  # the name of a registered pass
    module = _load_module(module_name)
    try:
        return getattr(module, name)
    except AttributeError:
        raise OptionError(f"--pass: {module_name} has no {name!r}") from None


def _load_module(name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            sys.path.insert(0, "")  # like `python -m`: find modules in the current folder
            return importlib.import_module(name)
        path = Path(name)
        if not path.is_file():
            raise StorageError(f"--pass: no such file: {path}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise OptionError(f"--pass: {path} cannot be loaded")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except ImportError as error:
        raise OptionError(f"--pass: {name} cannot be imported: {error}") from error


_DURATIONS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Parse `90s`, `10m`, `1.5h` or a number of seconds; return seconds. Raises OptionError if it is none of these, or
    not positive."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _DURATIONS or not float(match.group(1)):
        raise OptionError(f"{text!r} is not a duration", "write 90s, 10m or 1h")
    return float(match.group(1)) * _DURATIONS[match.group(2)]


_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "kib": 1024, "mib": 1024**2}


def parse_bytes(text: str) -> int:
    """Parse `192KiB`, `1MB` or a number of bytes. Raises OptionError if it is none of these, or not positive."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match.group(2) not in _BYTES or not float(match.group(1)):
        raise OptionError(f"{text!r} is not a size in bytes", "write 192KiB, 1MB or a number of bytes")
    return int(float(match.group(1)) * _BYTES[match.group(2)])


def _pairs(texts: Sequence[str], option: str, form: str) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"{option} {text!r} is not understood", f"write {option} {form}")
        if any(name.strip() == other for other, _ in pairs):
            raise OptionError(f"{option} {name.strip()} is given twice")
        pairs.append((name.strip(), value))
    return pairs


def parse_numbers(texts: Sequence[str], option: str) -> dict[str, float]:
    """Parse NAME=NUMBER of a repeatable option. Raises OptionError."""
    numbers = {}
    for name, text in _pairs(texts, option, "NAME=NUMBER"):
        try:
            numbers[name] = float(text)
        except ValueError as error:
            raise OptionError(f"{option} {name}={text}: {text!r} is no number", f"{option} ms=5") from error
    return numbers
