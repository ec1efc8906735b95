"""`torch.compile(model, backend="tensorwright")`: inference through modules of this compiler.

Found by PyTorch through the entry point `torch_dynamo_backends`. A graph is compiled at its first call, once for each
combination of input sizes; parameters are constants of the compiled module and it is compiled anew when they change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.dlpack

import compiler
from compiler.errors import OptionError


def tensorwright_backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The backend function that `torch.compile` calls with each captured graph.

    Args:
        options: keyword arguments of `tensorwright.compile`, e.g.
            `torch.compile(..., options={"target": "x86-64-v3"})`.
    """
    return _CompiledGraph(graph, dict(options or {}))


class _CompiledGraph:
    def __init__(self, graph: torch.fx.GraphModule, options: dict[str, Any]) -> None:
        self._graph = graph
        self._options = options
        self._modules: dict[tuple[Any, ...], _Specialization] = {}

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        if torch.is_grad_enabled() and any(_needs_gradient(argument) for argument in arguments):
            raise OptionError(
                "the tensorwright backend compiles inference, and this call would record gradients",
                "call the model inside torch.no_grad() or torch.inference_mode()",
            )
        key = tuple(_signature(argument) for argument in arguments)
        specialization = self._modules.get(key)
        if specialization is None or specialization.is_stale(arguments):
            specialization = _Specialization(self._graph, arguments, self._options)
            self._modules[key] = specialization
        return specialization(arguments)


class _Specialization:
    """A graph compiled for one combination of sizes, with its parameters as constants."""

    def __init__(self, graph: torch.fx.GraphModule, arguments: Sequence[Any], options: dict[str, Any]) -> None:
        self._fixed = [index for index, argument in enumerate(arguments) if _is_fixed(argument)]
        self._versions = self._parameter_versions(arguments)
        self._moving = [index for index in range(len(arguments)) if index not in set(self._fixed)]
        bound = _BoundGraph(graph, [arguments[index] for index in self._fixed], self._fixed, len(arguments))
        example_inputs = tuple(arguments[index].detach() for index in self._moving)
        self._module = compiler.compile(bound.eval(), example_inputs=example_inputs, **options)

    def is_stale(self, arguments: Sequence[Any]) -> bool:
        return self._versions != self._parameter_versions(arguments)

    def __call__(self, arguments: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        tensors = [arguments[index].detach() for index in self._moving]
        outputs = self._module.run(tensors, outputs="dlpack")
        return tuple(torch.utils.dlpack.from_dlpack(output) for output in outputs.values())

    def _parameter_versions(self, arguments: Sequence[Any]) -> list[tuple[int, int]]:
        tensors = [arguments[index] for index in self._fixed if isinstance(arguments[index], torch.Tensor)]
        return [(tensor.data_ptr(), tensor._version) for tensor in tensors]


class _BoundGraph(torch.nn.Module):
    """A captured graph with some of its arguments given: parameters, buffers and sizes."""

    def __init__(
        self, graph: torch.fx.GraphModule, values: Sequence[Any], positions: Sequence[int], arity: int
    ) -> None:
        super().__init__()
        self._graph = graph
        self._arity = arity
        self._numbers: dict[int, Any] = {}
        self._names: dict[int, str] = {}
        for position, value in zip(positions, values, strict=True):
            if isinstance(value, torch.Tensor):
                self._names[position] = f"argument_{position}"
                self.register_buffer(self._names[position], value.detach())
            else:
                self._numbers[position] = value

    def forward(self, *moving: torch.Tensor) -> Any:
        remaining = iter(moving)
        arguments = [
            getattr(self, self._names[position])
            if position in self._names
            else self._numbers[position]
            if position in self._numbers
            else next(remaining)
            for position in range(self._arity)
        ]
        return self._graph(*arguments)


def _is_fixed(argument: Any) -> bool:
    return not isinstance(argument, torch.Tensor) or isinstance(argument, torch.nn.Parameter | torch.nn.Buffer)


def _needs_gradient(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor) and argument.requires_grad


def _signature(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return tuple(argument.shape), argument.dtype
    return int(argument) if isinstance(argument, torch.SymInt) else argument
