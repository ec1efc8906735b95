"""Constants of a model's code, `torch.tensor(...)` or `torch.arange(8)`, whose values determine sizes.

torch propagates the values of constants of one element alone: the lengths that vision transformers compute from the
grids of their images would be unknown. And it keeps the first values when the model writes others to a view of the
constant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch.composite_functions import replaced
from compiler.frontends.torch.exporter_patches import patched

if TYPE_CHECKING:
    import torch

MAX_ELEMENTS = 4096  # of a constant whose values are propagated
_CREATORS = ("arange", "eye", "full", "ones", "zeros")


@contextmanager
def constants_propagated(elements: int) -> Iterator[None]:
    """Context in which exports propagate the values of constants of up to `elements` elements."""
    with ExitStack() as stack:
        for module in ("torch.fx.experimental.proxy_tensor", "torch._subclasses.fake_tensor"):
            stack.enter_context(patched(module, "CONSTANT_NUMEL_LIMIT", lambda _: elements))
        yield


def created_as_constants() -> AbstractContextManager[None]:
    """Context in which integers that a model creates, `torch.arange(8)`, are constants."""
    import torch

    return replaced([(torch, name, _as_constant) for name in _CREATORS])


def _as_constant(create: Callable[..., Any]) -> Callable[..., Any]:
    """The function with results of `torch.tensor` where its arguments are numbers and it returns few integers."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes
    from torch.utils._pytree import tree_leaves

    known = (int, float, str, torch.dtype, torch.device, torch.layout, type(None))

    @wraps(create)
    def created(*arguments: Any, **named: Any) -> Any:
        if "out" in named or not all(isinstance(each, known) for each in tree_leaves((arguments, named))):
            return create(*arguments, **named)
        with _disable_current_modes():
            described = create(*arguments, **{**named, "device": "meta"})
            integers = not described.is_floating_point() and not described.is_complex()
            few = integers and 0 < described.numel() <= MAX_ELEMENTS
            values = create(*arguments, **{**named, "device": "cpu"}).tolist() if few else None
        # the copy is the model's own, which it may write to
        return torch.tensor(values, dtype=described.dtype).clone() if few else create(*arguments, **named)

    return created


def propagated_elements(program: torch.export.ExportedProgram) -> int:
    """Maximum elements of the constants whose values are known: fewer than those of any constant, or part of one, that
    the program writes other values to."""
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
        elif writes(node.target) and node.args[0] in constants:
            sizes.append(int(node.args[0].meta["val"].numel()))
    return min((size - 1 for size in sizes), default=MAX_ELEMENTS)


def writes(operator: object) -> bool:
    """True for an operator that writes to an argument."""
    schema = getattr(operator, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
