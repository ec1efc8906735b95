"""Constants of a model's code, `torch.tensor(...)` or `torch.arange(8)`, whose values determine sizes.

torch computes what a model derives from a constant, for conditions and sizes, only of constants of one element; the
lengths that vision transformers compute from the grids of their images would be unknown. And it goes on with the first
values after the model has written others to a view of the constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.exporter_patches import replaced

if TYPE_CHECKING:
    import torch

MAX_ELEMENTS = 4096  # of a constant that is computed with


@contextmanager
def constants_computed(elements: int) -> Iterator[None]:
    """Context in which exports compute with the values of constants of at most so many elements."""
    with ExitStack() as stack:
        for module in ("torch.fx.experimental.proxy_tensor", "torch._subclasses.fake_tensor"):
            stack.enter_context(replaced(module, "CONSTANT_NUMEL_LIMIT", lambda _: elements))
        yield


@contextmanager
def created_as_constants() -> Iterator[None]:
    """Context in which integers that a model creates, `torch.arange(8)`, are constants."""
    with ExitStack() as stack:
        for name in _CREATORS:
            stack.enter_context(replaced("torch", name, _as_constant))
        yield


_CREATORS = ("arange", "eye", "full", "ones", "zeros")


def _as_constant(create: Callable[..., Any]) -> Callable[..., Any]:
    """The function with results of `torch.tensor` where its arguments are numbers and it returns few integers."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes
    from torch.utils._pytree import tree_leaves

    @wraps(create)
    def created(*arguments: Any, **named: Any) -> Any:
        known = (int, float, str, torch.dtype, torch.device, torch.layout, type(None))
        if "out" in named or not all(isinstance(each, known) for each in tree_leaves((arguments, named))):
            return create(*arguments, **named)
        with _disable_current_modes():
            described = create(*arguments, **{**named, "device": "meta"})
            if described.is_floating_point() or described.is_complex() or described.numel() > MAX_ELEMENTS:
                value = None
            else:
                value = create(*arguments, **{**named, "device": "cpu"}).tolist()
        # the copy is the model's own, which it may write to
        return create(*arguments, **named) if value is None else torch.tensor(value, dtype=described.dtype).clone()

    return created


def computed_elements(program: torch.export.ExportedProgram) -> int:
    """Maximum elements of the constants whose values are known: fewer than any constant, or part of one, has that the
    program writes other values to."""
    import torch

    constants = {
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.inputs_to_lifted_tensor_constants
    }
    sizes = []
    for node in program.graph.nodes:
        if node.op != "call_function" or not constants.intersection(node.all_input_nodes):
            continue
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if not drawn and constants.issuperset(node.all_input_nodes):
            constants.add(node)
        elif _is_written(node) and node.args[0] in constants:
            sizes.append(int(node.args[0].meta["val"].numel()))
    return min((size - 1 for size in sizes), default=MAX_ELEMENTS)


def _is_written(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable
