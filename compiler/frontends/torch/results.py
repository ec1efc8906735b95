"""Results of a PyTorch model as named tensors: tuples, dictionaries, dataclasses and caches, with any nesting."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

from compiler.errors import InvalidModelError, type_text
from compiler.frontends.torch.caches import is_cache

if TYPE_CHECKING:
    import torch

Path = tuple[str | int, ...]
_NUMBERS = int | float | bool
_SCALARS = _NUMBERS | str


@contextmanager
def named_results(model: torch.nn.Module) -> Iterator[None]:
    """Context in which the model returns a dictionary by name instead of any structure other than tuples of tensors.

    Numbers that are the same in every run are tensors, as are those that depend on dynamic sizes.
    """
    handle = model.register_forward_hook(_with_names)
    try:
        yield
    finally:
        handle.remove()


def _with_names(_: torch.nn.Module, __: object, result: object) -> Any:
    found = [(path, _as_tensor(leaf, path)) for path, leaf in _leaves(result, ())]
    if _is_numbered(path for path, _ in found):
        leaves = tuple(leaf for _, leaf in found)
        return leaves if isinstance(result, Sequence) or len(leaves) != 1 else leaves[0]
    return dict(zip(_names([path for path, _ in found]), (leaf for _, leaf in found), strict=True))


def _as_tensor(leaf: Any, path: Path) -> Any:
    import torch

    if isinstance(leaf, str):
        where = f" as {'.'.join(map(str, path))!r}" if path else ""
        raise InvalidModelError(
            f"the model returns the text {leaf!r}{where}", "return tensors and numbers, without their descriptions"
        )
    return torch.tensor(leaf) if isinstance(leaf, _NUMBERS) else leaf


def result_names(structure: Any, count: int) -> list[str]:
    """Return names for the `count` results of a program, whose structure is a `TreeSpec` or None."""
    numbered = [f"output_{index}" for index in range(count)]
    if structure is None or structure.num_leaves != count:
        return numbered
    try:
        paths = {leaf: path for path, leaf in _leaves(structure.unflatten(list(range(count))), ())}
    except Exception:  # from constructors that accept only tensors
        return numbered
    if set(paths) != set(range(count)) or _is_numbered(paths.values()):
        return numbered
    return _names([paths[index] for index in range(count)])


def complex_notes(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Return, for each complex output, which ONNX does not support, a line that explains its representation."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    results = program.graph_signature.user_outputs
    return {
        name: f"output {name!r}: complex numbers are pairs along a last axis of size 2, as of torch.view_as_real"
        for name, result in zip(result_names(program.call_spec.out_spec, len(results)), results, strict=True)
        if getattr(values.get(str(result)), "is_complex", bool)()
    }


def _is_numbered(paths: Any) -> bool:
    return all(isinstance(step, int) for path in paths for step in path)


def _names(paths: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for path in paths:
        name = "_".join(map(str, path))
        name = f"output_{name}" if isinstance(path[0], int) else name
        while name in names:
            name += "_"
        names.append(name)
    return names


def _leaves(value: object, path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield tensors and numbers with their positions; nothing for None. Raises InvalidModelError for other objects."""
    import torch

    if value is None:
        return
    if isinstance(value, torch.Tensor | torch.SymInt | torch.SymFloat | torch.SymBool | _SCALARS):
        yield path, value
        return
    for step, inner in _parts(value, path):
        yield from _leaves(inner, path if step is None else (*path, step))


def _parts(value: object, path: Path) -> list[tuple[str | int | None, Any]]:
    if isinstance(value, Mapping):
        return [(str(key), inner) for key, inner in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return list(zip(value._fields, value, strict=True))
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if is_cache(value):
        return _cache_parts(value)
    parts = _registered_parts(value)
    if parts is None:
        where = f" as {'.'.join(map(str, path))!r}" if path else ""
        raise InvalidModelError(
            f"the model returns {type_text(value)}{where}, which holds no known tensors",
            "return tensors, tuples, dictionaries or dataclasses of them, or register the class with "
            "torch.utils._pytree.register_pytree_node; models of transformers return no cache with use_cache=False",
        )
    return parts


def _cache_parts(cache: object) -> list[tuple[str | int | None, Any]]:
    """Return tensors, layers and inner caches of a transformers cache; its other attributes are bookkeeping."""
    import torch

    kinds = (torch.Tensor, list, tuple, dict)
    parts = [
        (None if name == "layers" else name, inner)
        for name, inner in vars(cache).items()
        if isinstance(inner, kinds) or is_cache(inner)
    ]
    return [(name, inner) for name, inner in parts if _holds_tensors(inner)]


def _holds_tensors(value: object) -> bool:
    import torch

    if isinstance(value, list | tuple):
        return any(map(_holds_tensors, value))
    if isinstance(value, dict):
        return any(map(_holds_tensors, value.values()))
    return isinstance(value, torch.Tensor) or hasattr(value, "__dict__")


def _registered_parts(value: object) -> list[tuple[str | int | None, Any]] | None:
    """Flatten with the functions that the class was registered with as a pytree; None if it was not registered."""
    from torch.utils import _pytree

    node = _pytree.SUPPORTED_NODES.get(type(value))
    if node is None:
        return None
    if node.flatten_with_keys_fn is not None:
        keyed, _ = node.flatten_with_keys_fn(value)
        return [(_step(key), inner) for key, inner in keyed]
    flatten: Callable[[Any], Any] = node.flatten_fn
    return list(enumerate(flatten(value)[0]))


def _step(key: object) -> str | int:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            step: str | int = getattr(key, attribute)
            return step
    return str(key)
