"""Operators composed of other operators, imported node by node on values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, signature
from typing import Any, TypeVar, cast

import numpy as np
import onnx.helper

from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError
from compiler.frontends.onnx.importer import Scope
from compiler.frontends.onnx.registry import bound_attributes, converter
from compiler.frontends.onnx.values import Constant, Runtime, Symbolic, TensorValue, Value, is_poisoned

_OPSETS = {"": 23, "com.microsoft": 1, "ai.onnx.ml": 3}
Function = TypeVar("Function", bound=Callable[..., Any])


class Composer:
    """Importer of nodes: each call imports one at the position of the node being converted, and returns its outputs.

    Inputs are values, arrays, numbers (of the type of the first tensor among the inputs) or None if missing. Nodes have
    opset 23 semantics.
    """

    def __init__(self, context: NodeContext) -> None:
        self.context = context
        self._scope = Scope(None, {}, _OPSETS, context.scope.depth + 1)

    def __call__(self, operator: str, *inputs: object, domain: str = "", **attributes: object) -> TensorValue:
        """Import a node and return its only output."""
        return self.outputs(1, operator, *inputs, domain=domain, **attributes)[0]

    def outputs(
        self, count: int, operator: str, *inputs: object, domain: str = "", **attributes: object
    ) -> list[TensorValue]:
        """Import a node and return its outputs."""
        values = self._values(inputs)
        names = ["" if value is None else f"in{index}" for index, value in enumerate(values)]
        base = self.context.name or self.context.operator
        outputs = [f"{base}/{operator}/{index}" for index in range(count)]
        given: dict[str, Any] = {name: value for name, value in attributes.items() if value is not None}
        node = onnx.helper.make_node(operator, names, outputs, name=base, domain=domain, **given)
        results = self.context.importer._import_node(node, values, self._scope)[:count]
        if any(is_poisoned(result) for result in results):
            raise PoisonedInputError
        return cast("list[TensorValue]", results)  # none of the operators has outputs other than tensors

    @staticmethod
    def number(dtype: str) -> int:
        """Return ONNX's number of an element type."""
        return dtypes.NUMBERS[dtype]

    def _values(self, inputs: Sequence[object]) -> list[Value | None]:
        tensors = [v for v in inputs if isinstance(v, (Constant, Symbolic, Runtime))]
        return [self._value(item, tensors[0].dtype if tensors else "float32") for item in inputs]

    @staticmethod
    def _value(item: object, dtype: str) -> Value | None:
        if isinstance(item, (bool, int, float)):
            return Constant(np.array(item, dtypes.numpy_dtype(dtype)), dtype)
        if isinstance(item, (np.ndarray, np.generic)):
            return Constant(np.asarray(item))
        return item  # type: ignore[return-value]


def composed(*operators: str, since: int = 1, domain: str = "") -> Callable[[Function], Function]:
    """Register a function as the converter of operators composed of others.

    It takes a Composer, then the node's inputs in order (those with a default are optional), then attributes as
    keywords with their defaults; an attribute without a default is required.
    """

    def register(function: Function) -> Function:
        parameters = list(signature(function).parameters.values())[1:]
        inputs = [each for each in parameters if each.kind is not Parameter.KEYWORD_ONLY]

        def convert(context: NodeContext) -> object:
            values = [
                context.tensor(index) if each.default is Parameter.empty or context.has_input(index) else each.default
                for index, each in enumerate(inputs)
            ]
            return function(Composer(context), *values, **bound_attributes(context, parameters))

        converter(*operators, since=since, domain=domain)(convert)
        return function

    return register


def int64s(*values: int) -> np.ndarray:
    """Return a list of sizes or axes as an operand."""
    return np.array(values, np.int64)
