"""The arguments of a graph captured by `torch.compile`: parameters, sizes, and per-call tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType
from typing import Any

import torch
from torch._dynamo.source import AttrSource

Position = tuple[int, int]  # position of a size: index of the argument, and of its dimension


@dataclass(frozen=True)
class GraphArguments:
    """The arguments of a captured graph, by position.

    `numbers`: integers, and floats of modules, which are constants of the compiled module. `sizes`: integers that equal
    a tensor dimension, with the position to read them from. `dynamic`: symbolic dimensions of tensors. All except
    `constants`, `sizes` and `numbers` are `tensors`, the inputs of the compiled module.
    """

    count: int
    tensors: tuple[int, ...]
    constants: tuple[int, ...]
    numbers: tuple[int, ...]
    sizes: dict[int, Position]
    dynamic: dict[int, frozenset[int]]

    @classmethod
    def of(cls, graph: torch.fx.GraphModule, given: Sequence[Any]) -> GraphArguments:
        """Return the arguments of a graph whose first arguments are `given`."""
        placeholders = graph.graph.find_nodes(op="placeholder")
        fake = [node.meta.get("example_value", value) for node, value in zip(placeholders, given, strict=True)]
        tensors, constants, numbers = [], [], []
        positions: dict[Any, Position] = {}
        dynamic: dict[int, frozenset[int]] = {}
        for index, example in enumerate(fake):
            if not isinstance(example, torch.Tensor) or _is_float(placeholders[index]):
                numbers.append(index)
            elif isinstance(given[index], torch.nn.Parameter | torch.nn.Buffer):
                constants.append(index)
            else:
                tensors.append(index)
                axes = {axis: _symbol(size) for axis, size in enumerate(example.shape)}
                dynamic[index] = frozenset(axis for axis, symbol in axes.items() if symbol is not None)
                for axis in dynamic[index]:
                    positions.setdefault(axes[axis], (index, axis))
        sizes = {index: positions[_symbol(fake[index])] for index in numbers if _symbol(fake[index]) in positions}
        rest = tuple(index for index in numbers if index not in sizes)
        return cls(len(given), tuple(tensors), tuple(constants), rest, sizes, dynamic)

    def signature(self, arguments: Sequence[Any], *, fixed: bool) -> tuple[Any, ...]:
        """Return a key equal for arguments that one module serves; `fixed`: a module without symbolic dimensions."""
        return (
            fixed,
            *(
                (arguments[index].dtype, tuple(self._known(index, arguments[index].shape, fixed)))
                for index in self.tensors
            ),
            *(_number(arguments[index]) for index in self.numbers),
        )

    def _known(self, index: int, shape: Sequence[int], fixed: bool) -> list[int | None]:
        open_axes = frozenset() if fixed else self.dynamic[index]
        return [None if axis in open_axes else int(size) for axis, size in enumerate(shape)]

    def dynamic_shapes(self) -> tuple[dict[int, Any], ...] | None:
        """Return dynamic shapes in `torch.export`'s format, for the tensors in order; None if all sizes are known."""
        if not any(self.dynamic.values()):
            return None
        return tuple(dict.fromkeys(self.dynamic[index], torch.export.Dim.AUTO) for index in self.tensors)

    def constant_versions(self, arguments: Sequence[Any]) -> list[tuple[int, int]]:
        """Return the versions of the constants, which change if a parameter is modified or replaced."""
        return [(arguments[index].data_ptr(), arguments[index]._version) for index in self.constants]


class BoundGraph(torch.nn.Module):
    """A captured graph as a module of its tensors: parameters are constants, and sizes are read from the tensors."""

    def __init__(self, graph: torch.fx.GraphModule, arguments: GraphArguments, values: Sequence[Any]) -> None:
        super().__init__()
        self._graph = graph
        self._arguments = arguments
        self._examples = [values[index] for index in arguments.tensors]
        self._numbers = {index: _number(values[index]) for index in arguments.numbers}
        for index in arguments.constants:
            self.register_buffer(_constant(index), values[index].detach())

    def forward(self, *tensors: torch.Tensor) -> Any:
        given: dict[int, Any] = dict(zip(self._arguments.tensors, tensors, strict=True))
        given |= self._numbers
        given |= {index: getattr(self, _constant(index)) for index in self._arguments.constants}
        given |= {index: given[at].shape[axis] for index, (at, axis) in self._arguments.sizes.items()}
        return self._graph(*(given[index] for index in range(self._arguments.count)))

    def digest(self) -> str | None:
        """Return a digest of operators, constants, and the types and sizes of the example inputs; None if the graph
        calls code outside PyTorch."""
        digest = hashlib.sha256()
        for name, module in self.named_modules():
            if isinstance(module, torch.fx.GraphModule):
                if not all(map(_is_of_torch, module.graph.nodes)):
                    return None
                digest.update(f"{name} {module.code}".encode())
            elif module is not self and not type(module).__module__.startswith("torch."):
                return None
            else:
                digest.update(f"{name} {type(module).__name__} {module.extra_repr()}".encode())
        arguments = self._arguments
        numbers = [self._numbers, arguments.sizes, sorted((at, sorted(axes)) for at, axes in arguments.dynamic.items())]
        examples = [(each.dtype, each.shape, each.stride()) for each in self._examples]
        digest.update(repr((numbers, examples)).encode())
        for name, tensor in sorted(self.state_dict(keep_vars=True).items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


def _is_of_torch(node: torch.fx.Node) -> bool:
    """True unless a node calls a function of another package, whose code may change."""
    if node.op != "call_function" or isinstance(node.target, BuiltinFunctionType):
        return True
    module = getattr(node.target, "__module__", None) or ""
    return module.split(".")[0] in ("torch", "_operator", "operator", "math", "builtins")


def grown_axes(graph: torch.fx.GraphModule) -> dict[int, int]:
    """Return the outputs that extend an input by concatenation, with their axes: the next call passes them back.

    For example, a cache of keys and values. Marking them as dynamic makes one graph serve all lengths.
    """
    (results,) = graph.graph.output_node().args
    axes: dict[int, int] = {}
    for index, node in enumerate(results if isinstance(results, tuple | list) else (results,)):
        if isinstance(node, torch.fx.Node) and node.target in (torch.cat, torch.concat, torch.concatenate):
            axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
            if isinstance(axis, int):
                axes[index] = axis
    return axes


def _constant(index: int) -> str:
    return f"argument_{index}"


def _symbol(size: Any) -> Any:
    """Return the symbolic expression of a size; None if it is a number."""
    if not isinstance(size, torch.SymInt):
        return None
    expression = size.node.shape_env.replace(size.node.expr)
    return None if expression.is_number else expression


class _Float(float):
    """A float that the graph reads as a one-element tensor."""

    def item(self) -> float:
        return float(self)


def _is_float(node: torch.fx.Node) -> bool:
    """True for a float that is a module attribute (such as a normalization's epsilon), which dynamo passes as a tensor
    if it captures floats as symbols. Floats among a function's arguments stay inputs, since they may differ per
    call."""
    example = node.meta.get("example_value")
    argument = node.meta.get("grapharg")
    if not isinstance(example, torch.Tensor) or example.dtype != torch.float64 or example.ndim or argument is None:
        return False
    is_read_alone = all(user.op == "call_method" and user.target == "item" for user in node.users)
    return is_read_alone and isinstance(argument.source, AttrSource)


def _number(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return _Float(value.item())
    return int(value) if isinstance(value, torch.SymInt) else value
