"""Runs a PyTorch model and, as the reference, PyTorch itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

from compiler.driver.compile import compile
from compiler.errors import InputError, InvalidModelError
from compiler.frontends.torch.capture import exported_program, quiet
from compiler.frontends.torch.exported_program import read_program
from compiler.frontends.torch.requirements import operator_of, shown_name

Array = np.ndarray


class TorchSide:
    """See `Side`: values are results of the operators captured by `torch.export`, at the sizes of the example.

    Raises InvalidModelError if the model cannot be captured, and InputError for inputs that it does not accept.
    """

    reference = "torch"

    def __init__(self, source: Any, inputs: Mapping[str, object], options: Mapping[str, Any]) -> None:
        """Create the side.

        Args:
            source: a `torch.nn.Module`, an `ExportedProgram`, or the path of a .pt2 file.
            inputs: numpy arrays or tensors by the names of the program's inputs, replacing the example's.
            options: options of `compile`, including `example_inputs`.
        """
        self._options = {
            name: value for name, value in options.items() if name not in ("example_inputs", "dynamic_shapes")
        }
        program = read_program(Path(source)) if isinstance(source, str | Path) else source
        program = exported_program(program, options.get("example_inputs"), None)
        with quiet():
            graph = program.run_decompositions({}).module(check_guards=False)
        self.model = Path(source).name if isinstance(source, str | Path) else type(source).__name__
        if not isinstance(graph, torch.fx.GraphModule) or program.example_inputs is None:
            raise InvalidModelError("the program has no example inputs", "export it anew, or give the torch.nn.Module")
        self._graph = graph
        found = graph.graph.find_nodes(op="placeholder")
        leaves = torch.utils._pytree.tree_leaves(program.example_inputs)
        self._inputs = dict(zip((node.name for node in found), leaves, strict=True))
        unknown = [name for name in inputs if name not in self._inputs]
        if unknown:
            raise InputError(f"no input is named {unknown[0]!r}", f"the inputs are {', '.join(self._inputs)}")
        for name, value in inputs.items():
            self._inputs[name] = torch.as_tensor(value)
        self.example = {name: _array(each) for name, each in self._inputs.items() if isinstance(each, torch.Tensor)}
        computed = [node for node in graph.graph.nodes if node.op == "call_function" and _is_tensor(node)]
        self.values = [node.name for node in computed]
        self.nodes = {node.name: f"{operator_of(node)} node {shown_name(node)!r}" for node in computed}
        self.operands = {
            node.name: [each.name for each in node.all_input_nodes if each.op in ("call_function", "placeholder")]
            for node in computed
        }
        results = torch.utils._pytree.tree_leaves(graph.graph.output_node().args)
        names = [each.name for each in results if isinstance(each, torch.fx.Node) and each.name in self.nodes]
        self.outputs = list(dict.fromkeys(names))

    def _returning(self, names: Sequence[str]) -> torch.nn.Module:
        """The program with these values as results."""
        graph = deepcopy(self._graph)
        by_name = {node.name: node for node in graph.graph.nodes}
        graph.graph.erase_node(graph.graph.output_node())
        graph.graph.set_codegen(torch.fx.graph.CodeGen())  # arguments and results are flat
        graph.graph.output(tuple(by_name[name] for name in names))
        graph.recompile()
        return _Plain(graph)

    def ours(self, names: Sequence[str]) -> dict[str, Array]:
        module = compile(self._returning(names), **self._options, example_inputs=tuple(self._inputs.values()))
        arrays = dict(
            zip((f"inputs_{index}" for index in range(len(self._inputs))), self._inputs.values(), strict=True)
        )
        taken = {each.name for each in module.inputs}
        outputs = module.run({name: array for name, array in arrays.items() if name in taken})
        return dict(zip(names, outputs.values(), strict=True))

    def theirs(self, names: Sequence[str]) -> dict[str, Array]:
        with torch.no_grad():
            results = self._returning(names)(*self._inputs.values())
        return {name: _array(result) for name, result in zip(names, results, strict=True)}


class _Plain(torch.nn.Module):
    """A graph as a module in evaluation mode, regardless of the graph's own attributes."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__()
        self.program = graph  # not `_graph`, which fx sets on its own modules
        self.training = graph.training = False
        for each in self.modules():
            each.training = False

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.program(*inputs)


def _is_tensor(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and not value.is_complex()


def _array(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.detach().contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    return np.asarray(tensor.detach().contiguous().numpy())
