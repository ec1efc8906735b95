"""`torch.compile(model, backend="tensorwright")`: inference through modules of this compiler.

Found by PyTorch through the entry point `torch_dynamo_backends`. A graph is compiled at its first call. Dimensions that
PyTorch captured as dynamic stay so: one module serves all their sizes. Parameters are constants of the compiled module,
which is compiled anew when they change; inputs that the graph writes to, such as a static cache, are updated in place.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.utils.dlpack

import compiler
from compiler.errors import InputError, OptionError, UserError
from compiler.frontends.torch.graph_arguments import BoundGraph, GraphArguments, grown_axes

Array = np.ndarray


def tensorwright_backend(
    graph: torch.fx.GraphModule, example_inputs: Sequence[Any], *, options: dict[str, Any] | None = None
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The backend function that `torch.compile` calls with each captured graph.

    Args:
        options: keyword arguments of `tensorwright.compile`, e.g.
            `torch.compile(..., options={"target": "x86-64-v3"})`.
    """
    return _CompiledGraph(graph, GraphArguments.of(graph, example_inputs), dict(options or {}))


class _CompiledGraph:
    def __init__(self, graph: torch.fx.GraphModule, arguments: GraphArguments, options: dict[str, Any]) -> None:
        self._graph = graph
        self._arguments = arguments
        self._options = options
        self._modules: dict[tuple[Any, ...], _Specialization] = {}
        self._dynamic = arguments.dynamic_shapes()  # None: no dimension is dynamic, or they cannot be compiled
        self._warned = False
        self._grown = grown_axes(graph)

    def __call__(self, *arguments: Any) -> tuple[torch.Tensor, ...]:
        if torch.is_grad_enabled() and any(getattr(argument, "requires_grad", False) for argument in arguments):
            raise OptionError(
                "the tensorwright backend compiles inference, and this call would record gradients",
                "call the model inside torch.no_grad() or torch.inference_mode()",
            )
        results = self._results(arguments)
        for index, axis in self._grown.items():
            torch._dynamo.maybe_mark_dynamic(results[index], axis % results[index].ndim)
        return results

    def _results(self, arguments: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """Run the module for all sizes, or one for the sizes of these arguments if there is none or it refuses them."""
        module = None
        if self._dynamic is not None:
            try:
                module = self._specialization(arguments, self._dynamic)
            except UserError as error:
                self._dynamic = None
                self._warn(error)
        if module is not None:
            try:
                return module(arguments)
            except InputError as error:  # PyTorch may fix sizes while it captures the graph
                self._warn(error)
        return self._specialization(arguments, None)(arguments)

    def _specialization(self, arguments: Sequence[Any], dynamic: Any) -> _Specialization:
        key = self._arguments.signature(arguments, fixed=dynamic is None)
        specialization = self._modules.get(key)
        if specialization is None or specialization.is_stale(arguments):
            specialization = _Specialization(self._graph, self._arguments, arguments, dynamic, self._options)
            self._modules[key] = specialization
        return specialization

    def _warn(self, error: UserError) -> None:
        if not self._warned:
            problem = "the tensorwright backend compiles this graph once for each combination of sizes"
            warnings.warn(f"{problem}: {error}", stacklevel=4)
        self._warned = True


class _Specialization:
    """A graph compiled with its parameters as constants, for the sizes of these arguments but for `dynamic` ones."""

    def __init__(
        self,
        graph: torch.fx.GraphModule,
        arguments: GraphArguments,
        values: Sequence[Any],
        dynamic: Any,
        options: dict[str, Any],
    ) -> None:
        self._arguments = arguments
        self._versions = arguments.constant_versions(values)
        bound = BoundGraph(graph, arguments, values).eval()
        examples = tuple(values[index].detach() for index in arguments.tensors)
        shapes = None if dynamic is None else (dynamic,)
        self._module = compiler.compile(bound, example_inputs=examples, dynamic_shapes=shapes, state=["*"], **options)
        self._names = [f"tensors_{position}" for position in range(len(examples))]
        self._states = frozenset(state.input for state in self._module.manifest.states)
        self._taken = frozenset(each.name for each in self._module.inputs)

    def is_stale(self, values: Sequence[Any]) -> bool:
        return self._versions != self._arguments.constant_versions(values)

    def __call__(self, values: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        tensors = {
            name: values[index].detach()
            for name, index in zip(self._names, self._arguments.tensors, strict=True)
            if name in self._taken
        }
        if self._states:
            states = {name: _array_over(tensors.pop(name)) for name in self._states}
            outputs = self._module.run_in_place(tensors, states, outputs="dlpack")
        else:
            outputs = self._module.run(tensors, outputs="dlpack")
        return tuple(torch.utils.dlpack.from_dlpack(output) for output in outputs.values())


def _array_over(tensor: torch.Tensor) -> Array:
    """A tensor's memory as numpy has it."""
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.numpy())
