"""Constants of a model's code, `torch.tensor(...)`, whose values determine sizes.

torch computes what a model derives from a constant, for conditions and sizes, only of constants of one element; the
lengths that vision transformers compute from the grids of their images would be unknown. And it goes on with the first
values after the model has written others to a view of the constant.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
