"""Decompositions of PyTorch operators without an ONNX conversion into operators that have one.

They are discovered in `compiler.frontends.torch.operators`, one file per family. LSTMs with projections are written out
step by step: ONNX's LSTM has none, and the exporter drops them silently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from schedules.discovery import import_all

if TYPE_CHECKING:
    import torch

Decomposition = Callable[..., Any]
_DECOMPOSITIONS: dict[str, list[_Registered]] = {}
_BATCH_NORMS = ("aten.batch_norm.default", "aten.native_batch_norm.default")


@dataclass(frozen=True)
class _Registered:
    """A decomposition, and the nodes to which it applies."""

    function: Decomposition
    dtypes: Container[torch.dtype] | None
    condition: Callable[[torch.fx.Node], bool] | None

    def applies(self, node: torch.fx.Node) -> bool:
        """True if it applies to the node's arguments, and to the type of its first result."""
        if self.condition is not None and not self.condition(node):
            return False
        value = node.meta.get("val")
        first = value[0] if isinstance(value, list | tuple) and value else value
        return self.dtypes is None or getattr(first, "dtype", None) in self.dtypes


def decomposition_of(
    *operators: str,
    dtypes: Container[torch.dtype] | None = None,
    condition: Callable[[torch.fx.Node], bool] | None = None,
) -> Callable[[Decomposition], Decomposition]:
    """Register a function that takes the arguments of these operators ("aten.cdist.default") and computes the same.

    `torch` traces it into the program. It returns NotImplemented for unsupported arguments, for which the operator's
    next decomposition is tried.

    Args:
        dtypes: data types of results: programs without such results of these operators are not traced.
        condition: predicate on nodes: programs without a node that satisfies it are not traced.
    """

    def register(function: Decomposition) -> Decomposition:
        for operator in operators:
            _DECOMPOSITIONS.setdefault(operator, []).append(_Registered(function, dtypes, condition))
        return function

    return register


def decomposed(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program without the operators that are decomposed here; the same object if it uses none."""
    _discover()
    if any(_normalizes_by_batch(node) for node in every_node(program)):
        program = program.run_decompositions({})
    used = {node.target for node in every_node(program) if _applies(node)}
    return program.run_decompositions({each: decomposition(str(each)) for each in used}) if used else program


def every_node(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """Return the nodes of all graphs, including those of branches."""
    return [node for each in program.graph_module.modules() if hasattr(each, "graph") for node in each.graph.nodes]


def _normalizes_by_batch(node: torch.fx.Node) -> bool:
    """True for an operator that torch's functionalization turns into one with a decomposition: those of training, and
    on float64."""
    import torch

    if str(node.target) not in _BATCH_NORMS or node.args[3] is None:
        return False
    return bool(node.args[5]) or node.all_input_nodes[0].meta["val"].dtype == torch.float64


def _applies(node: torch.fx.Node) -> bool:
    return any(each.applies(node) for each in _DECOMPOSITIONS.get(str(node.target), ()))


def is_dynamic(sizes: Sequence[Any]) -> bool:
    """True if a size is symbolic."""
    return not all(isinstance(size, int) for size in sizes)


def along_axis(values: torch.Tensor, rank: int, axis: int) -> torch.Tensor:
    """Reshape a vector so that it broadcasts along one axis of tensors of a rank."""
    return values.reshape([-1 if each == axis else 1 for each in range(rank)])


def float_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of results of functions of real numbers: the default type for integers and booleans."""
    import torch

    return dtype if dtype.is_floating_point else torch.get_default_dtype()


def decomposed_operators() -> Collection[str]:
    """Return the names of the operators that are decomposed here."""
    _discover()
    return _DECOMPOSITIONS.keys()


def decomposition(operator: str) -> Decomposition:
    """Return the first decomposition of an operator that supports the arguments; NotImplemented if none does."""
    _discover()
    functions = [each.function for each in _DECOMPOSITIONS[operator]]

    def first_that_covers(*arguments: Any, **named: Any) -> Any:
        results = (function(*arguments, **named) for function in functions)
        return next((each for each in results if each is not NotImplemented), NotImplemented)

    return first_that_covers


@cache
def _discover() -> None:
    import_all("compiler.frontends.torch.operators")


def without_projections(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program with each `torch.nn.LSTM` with `proj_size` > 0 written out in single steps; other LSTMs stay.

    The number of steps is known: `torch.export` fixes it for such layers.
    """
    import torch
    from torch._decomp import get_decompositions

    lstm = torch.ops.aten.lstm.input
    if not any(node.target is lstm and _projects(*node.args[2:]) for node in program.graph.nodes):
        return program
    steps = get_decompositions([lstm])[lstm]

    def decomposition(*arguments: Any) -> Any:
        return steps(*arguments) if _projects(*arguments[2:]) else NotImplemented

    return program.run_decompositions({lstm: decomposition})


def _projects(
    parameters: Sequence[Any], biases: bool, layers: int, dropout: float, training: bool, bidirectional: bool, *_: bool
) -> bool:
    """True if each direction of each layer has one matrix more than those of input, state and biases."""
    return len(parameters) > layers * (1 + bidirectional) * (2 + 2 * biases)
