"""The registry of nets: each family is a module of this package whose builders are decorated with `net`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks._models import Task, cache_folder, count_operations

Array = np.ndarray
Sizes = Mapping[str, int]
Exporter = Literal["dynamo", "torchscript"]
Builder = Callable[[], Any]
REGISTRY: dict[str, Net] = {}
_EXAMPLES = 256
_EXAMPLE_BYTES = 1 << 18  # size of all examples of a net together


@dataclass(frozen=True)
class Input:
    """An input of a net: its shape, with names for dynamic sizes, and the distribution of random values.

    `draw(generator, shape, sizes)` returns the array; `sizes` are the values of the symbols.
    """

    shape: tuple[int | str, ...]
    draw: Callable[[np.random.Generator, tuple[int, ...], Sizes], Array]

    def sample(self, generator: np.random.Generator, sizes: Sizes) -> Array:
        """Return an array of the shape at given sizes."""
        shape = tuple(sizes[each] if isinstance(each, str) else each for each in self.shape)
        return np.asarray(self.draw(generator, shape, sizes))


def floats(*shape: int | str, scale: float = 1.0, dtype: str = "float32") -> Input:
    """Normal values."""
    return Input(shape, lambda generator, actual, _: (generator.standard_normal(actual) * scale).astype(dtype))


def integers(high: int | str, *shape: int | str, dtype: str = "int64") -> Input:
    """Uniform integers from 0 to `high` - 1; `high` may be a symbol."""

    def draw(generator: np.random.Generator, actual: tuple[int, ...], sizes: Sizes) -> Array:
        return generator.integers(0, sizes[high] if isinstance(high, str) else high, actual).astype(dtype)

    return Input(shape, draw)


def ones(*shape: int | str, dtype: str = "int64") -> Input:
    """Ones, such as the attention mask of full sentences."""
    return Input(shape, lambda _, actual, __: np.ones(actual, dtype))


@dataclass(frozen=True)
class Net:
    """A net in the table.

    Attributes:
        family: the module that registers it.
        build: returns a `torch.nn.Module` in evaluation mode, an `onnx.ModelProto` or the path of an ONNX file.
        inputs: by name, in the order of the module's arguments; symbols are dynamic for every contestant.
        sizes: values of the symbols, one row of the table each.
        exporter: exporter of torch modules.
        tolerance: absolute and relative, of floats against ONNX Runtime's, relative to the largest value.
    """

    name: str
    family: str
    build: Builder
    inputs: Mapping[str, Input]
    sizes: tuple[Sizes, ...]
    exporter: Exporter
    tolerance: float

    @property
    def shapes(self) -> dict[str, tuple[int | str, ...]]:
        """`shapes=` of `compiler.compile`."""
        return {name: value.shape for name, value in self.inputs.items()}

    @property
    def dynamic(self) -> bool:
        """True if any size is dynamic."""
        return any(isinstance(size, str) for shape in self.shapes.values() for size in shape)

    def path(self) -> Path:
        """The ONNX file. Other models are exported once and kept until the source of their family changes."""
        folder = cache_folder() / "families"
        folder.mkdir(exist_ok=True)
        file = folder / f"{self.name}.onnx"
        if file.exists() and file.stat().st_mtime > Path(inspect.getfile(self.build)).stat().st_mtime:
            return file
        source = self.build()
        if isinstance(source, str | Path):
            return Path(source)
        _save(self, source, file)
        return file

    def sample(self, seed: int, sizes: Sizes) -> dict[str, Array]:
        """Return random inputs."""
        generator = np.random.default_rng(seed)
        return {name: value.sample(generator, sizes) for name, value in self.inputs.items()}

    def task(self, sizes: Sizes) -> Task:
        """Return the comparison at given sizes, with as many different inputs as fit in a processor's cache."""
        path, inputs = self.path(), self.sample(0, sizes)
        name = "-".join([self.name, *map(str, sizes.values())])
        total = sum(array.nbytes for array in inputs.values())
        arrays = []
        for seed in range(max(1, min(_EXAMPLES, _EXAMPLE_BYTES // max(total, 1)))):
            arrays.append(cache_folder() / "families" / f"{name}-{seed}.npz")
            np.savez(arrays[-1], **self.sample(seed, sizes))  # type: ignore[arg-type]
        operations = count_operations(path, inputs)
        return Task(name, path, arrays[0], self.shapes, operations, further_arrays=tuple(arrays[1:]))


def net(
    name: str,
    inputs: Mapping[str, Input],
    sizes: Sequence[Sizes] = ({},),
    *,
    exporter: Exporter = "dynamo",
    tolerance: float = 1e-4,
) -> Callable[[Builder], Builder]:
    """Register the decorated function as the builder of a net; see `Net`. Raises ValueError when the name is taken."""

    def register(build: Builder) -> Builder:
        if name in REGISTRY:
            raise ValueError(f"there are two nets {name!r}")
        family = build.__module__.rpartition(".")[2]
        REGISTRY[name] = Net(name, family, build, inputs, tuple(sizes), exporter, tolerance)
        return build

    return register


def nets() -> dict[str, Net]:
    """Return all nets by name; imports every module of this package."""
    import benchmarks.families

    for module in pkgutil.iter_modules(benchmarks.families.__path__):
        if module.name != "__main__":
            importlib.import_module(f"benchmarks.families.{module.name}")
    return REGISTRY


def _save(entry: Net, source: Any, file: Path) -> None:
    import onnx

    if isinstance(source, onnx.ModelProto):
        onnx.save(source, file)
        return
    import torch

    # Sizes of 2 and more in the example: torch.export treats sizes of 0 and 1 as constants.
    symbols = sorted({each for shape in entry.shapes.values() for each in shape if isinstance(each, str)})
    example_sizes = {symbol: max(entry.sizes[0][symbol], 2) for symbol in symbols}
    example = tuple(torch.from_numpy(array) for array in entry.sample(0, example_sizes).values())
    names = {
        key: {axis: each for axis, each in enumerate(shape) if isinstance(each, str)}
        for key, shape in entry.shapes.items()
    }
    options: dict[str, Any] = {"input_names": list(entry.inputs), "verbose": False}
    with torch.no_grad():
        if entry.exporter == "torchscript":
            axes = {key: value for key, value in names.items() if value}
            torch.onnx.export(source, example, str(file), dynamo=False, dynamic_axes=axes, opset_version=17, **options)
            return
        if entry.dynamic:
            dim = torch.export.Dim.DYNAMIC
            options["dynamic_shapes"] = tuple(dict.fromkeys(axes, dim) for axes in names.values())
        program = torch.onnx.export(source, example, dynamo=True, **options)
    assert program is not None
    program.save(str(file))
