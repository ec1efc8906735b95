"""The models of a comparison as ONNX files that every contestant reads: models that are not files are exported once and
kept.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from benchmarks.catalog import CATALOG, CatalogModel, Inputs, inputs_for

Array = np.ndarray
Case = TypeVar("Case")


@dataclass(frozen=True)
class Task:
    """One comparison: a model, at one size of its symbolic dimensions.

    `path` is the ONNX file, `arrays` an .npz file of the inputs, `shapes` the argument of `compiler.compile`,
    `operations` the number of multiplications and additions in the model's convolutions and matmuls. Runs cycle through
    the inputs of `arrays` and `further_arrays`, which have the same shapes.
    """

    name: str
    path: Path
    arrays: Path
    shapes: Mapping[str, Any] | None
    operations: int
    further_arrays: tuple[Path, ...] = ()


def cache_folder() -> Path:
    """Folder of exported models."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "tensorwright" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def task_of(name: str, sizes: Mapping[str, int] | None = None) -> Task:
    """Return the task for a model in the catalog or torchvision, or an ONNX file. Raises ValueError for other names."""
    if name.endswith(".onnx"):
        return _task(Path(name).stem, Path(name), _random_inputs(Path(name)), None)
    model = CATALOG.get(name) or _torchvision(name)
    if model is None:
        raise ValueError(f"no model {name!r}: give an .onnx file, a torchvision model, or one of {', '.join(CATALOG)}")
    return model_task(model, sizes)


def batched(name: str, batch: int) -> Task:
    """Return the task for a PyTorch model exported at a batch size. Raises ValueError for other names."""
    model = CATALOG.get(name) or _torchvision(name)
    if model is None or "torch" not in model.tags:
        raise ValueError(f"{name!r} is no PyTorch model")

    def inputs(generator: np.random.Generator, sizes: Mapping[str, int]) -> Inputs:
        samples = [model.inputs(generator, sizes) for _ in range(batch)]
        return {key: np.concatenate([each[key] for each in samples]) for key in samples[0]}

    return model_task(replace(model, name=f"{name}-batch-{batch}", inputs=inputs))


def model_task(model: CatalogModel, sizes: Mapping[str, int] | None = None) -> Task:
    """Return the task for a model in the catalog."""
    source = model.load()
    path = Path(source) if isinstance(source, str | Path) else _exported(model, source)
    inputs = inputs_for(model, sizes=sizes)
    suffix = "".join(f"-{size}" for size in (sizes or {}).values())
    return _task(model.name + suffix, path, inputs, {key: array.shape for key, array in inputs.items()})


def _task(name: str, path: Path, inputs: Mapping[str, Array], shapes: Mapping[str, object] | None) -> Task:
    folder = cache_folder()
    arrays = folder / f"{name}.npz"
    stored: dict[str, Any] = {key: np.asarray(value) for key, value in inputs.items()}
    np.savez(arrays, **stored)
    return Task(name, path, arrays, shapes, count_operations(path, inputs))


def _torchvision(name: str) -> CatalogModel | None:
    import torchvision

    from benchmarks import catalog

    return catalog._torchvision(name) if name in torchvision.models.list_models() else None


def _exported(model: CatalogModel, module: Any) -> Path:
    path = cache_folder() / f"{model.name}.onnx"
    if path.exists():
        return path
    if isinstance(module, onnx.ModelProto):
        onnx.save(module, path)
        return path
    import torch

    inputs = inputs_for(model)
    arguments = tuple(torch.from_numpy(array) for array in inputs.values())
    program = torch.onnx.export(module, arguments, input_names=list(inputs), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(path))
    return path


def _random_inputs(path: Path) -> dict[str, Array]:
    """Return normal values for float inputs, ones for others; unknown dimensions are 1."""
    graph = onnx.load(str(path), load_external_data=False).graph
    known = {initializer.name for initializer in graph.initializer}
    generator = np.random.default_rng(0)
    result: dict[str, Array] = {}
    for value in graph.input:
        if value.name in known:
            continue
        tensor = value.type.tensor_type
        shape = [dim.dim_value or 1 for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        floats = generator.standard_normal(shape) if dtype.kind == "f" else np.ones(shape)
        result[value.name] = floats.astype(dtype)
    return result


def count_operations(path: Path, inputs: Mapping[str, Array]) -> int:
    """Count multiplications and additions of Conv, ConvTranspose, Gemm and MatMul nodes; 0 if shapes are unknown."""
    model = onnx.load(str(path))
    for value in model.graph.input:
        if value.name in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name].shape, strict=False):
                dim.dim_value = size
    try:
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception as error:
        print(f"{path.name}: no operation count ({error})")
        return 0
    shapes = {initializer.name: tuple(initializer.dims) for initializer in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shapes[value.name] = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return sum(_node_operations(node, shapes) for node in model.graph.node)


def _node_operations(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    first, second = (shapes.get(name, ()) for name in node.input[:2])
    result = shapes.get(node.output[0], ())
    if node.op_type == "Conv":
        return 2 * int(np.prod(result)) * int(np.prod(second[1:]))
    if node.op_type == "ConvTranspose":
        return 2 * int(np.prod(first)) * int(np.prod(second[1:]))
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = first[0] if transposed else first[-1] if first else 0
    return 2 * int(np.prod(result)) * inner


def chosen_cases(
    command: str, description: str | None, cases: Mapping[str, Case]
) -> tuple[dict[str, Case], Path | None]:
    """(the cases whose names begin as the arguments of a benchmark say, or all; the file of `--json` for its rows)"""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="beginnings of names of cases; all when none is given")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    chosen = {name: case for name, case in cases.items() if not options.names or name.startswith(tuple(options.names))}
    if not chosen:
        parser.error(f"there are {', '.join(cases)}")
    return chosen, options.json
