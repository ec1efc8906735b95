"""recognize-gelu and recognize-silu: replace activations written out as arithmetic by operators.

Recognizes a scalar function from the arithmetic it was decomposed into.

Exporters write GELU and similar functions in many ways: factors in any order, x/1.414 or x*0.707, cubes as powers or
products. So the arithmetic is not matched but evaluated in float64, at points that tell the known functions apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import Call, Expr, Graph, RuleTable, Var, operator_name
from compiler.passes.rewriting.matching import Array, array_of, dtype_of, same_shape, shape_of

_gelu_rules = RuleTable()


@graph_pass("recognize-gelu", summary="Replace a decomposed GELU by one operator")
def recognize_gelu(mod: IRModule, context: PipelineContext) -> IRModule:
    """0.5 * x * (1 + erf(x / sqrt(2))) and the tanh form, however they are written."""
    return _gelu_rules.apply(mod)


@_gelu_rules.on("relax.multiply", "relax.divide", "relax.add")
def spelled_gelu(graph: Graph, call: Call) -> Expr | None:
    """=> gelu(x) or gelu_tanh(x)"""
    match = recognize(graph, call, {"gelu": gelu, "gelu_tanh": gelu_tanh})
    if match is None:
        return None
    operator = relax.op.nn.gelu if match.function == "gelu" else relax.op.nn.gelu_tanh
    return operator(match.argument)


_silu_rules = RuleTable()


@graph_pass("recognize-silu", summary="Replace a decomposed sigmoid or SiLU by one operator")
def recognize_silu(mod: IRModule, context: PipelineContext) -> IRModule:
    """x * sigmoid(x), x / (1 + exp(-x)) and 1 / (1 + exp(-x)), however they are written."""
    return _silu_rules.apply(mod)


@_silu_rules.on("relax.multiply", "relax.divide")
def spelled_silu(graph: Graph, call: Call) -> Expr | None:
    """=> silu(x) or sigmoid(x)"""
    found = recognize(graph, call, {"silu": silu, "sigmoid": sigmoid})
    if found is None:
        return None
    return relax.op.nn.silu(found.argument) if found.function == "silu" else relax.op.sigmoid(found.argument)


Function = Callable[[Array], Array]

_erf = np.vectorize(math.erf, otypes=[np.float64])
_NUMPY = ("add", "subtract", "multiply", "divide", "power", "negative", "square", "sqrt", "exp", "tanh")
_SCALAR_OPERATORS: dict[str, Callable[..., Any]] = {
    **{f"relax.{name}": getattr(np, name) for name in _NUMPY},
    "relax.erf": _erf,
    "relax.sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}
# Operators that a decomposed function must contain to be considered.
_TELLTALE = {"relax.exp", "relax.tanh", "relax.erf", "relax.sigmoid"}
_MAX_CALLS = 16
_POINTS = np.concatenate([np.linspace(-9, 9, 41), [-0.7, -0.1, -1e-3, 1e-3, 0.3, 1.7]])
# Model constants carry the rounding of their data type; at the sample points the error is at most this, relative to
# |x|+1.
_TOLERANCE = {"float64": 1e-7, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(frozen=True)
class Spelling:
    """`function` of `argument`, as computed by the calls that end in `root`."""

    function: str
    argument: Expr


class _Cone:
    """The arithmetic calls that `root` depends on: a function of one variable, if cut at that variable."""

    def __init__(self, graph: Graph, root: Call) -> None:
        self.root = root
        self.calls: dict[Var, Call] = {}
        self.edges: dict[Var, int] = {}
        self._graph = graph
        self.complete = self._collect(root)

    def _collect(self, call: Call) -> bool:
        for operand in call.args:
            if not isinstance(operand, relax.Var):
                continue
            self.edges[operand] = self.edges.get(operand, 0) + 1
            if operand in self.calls:
                continue
            value = self._graph.definition(operand)
            if operator_name(value) in _SCALAR_OPERATORS:
                self.calls[operand] = value
                if len(self.calls) > _MAX_CALLS or not self._collect(value):
                    return False
        return True

    def has_telltale(self) -> bool:
        """True if the calls are more than sums and products."""
        return any(operator_name(call) in _TELLTALE for call in self.calls.values())

    def evaluate(self, argument: Var) -> tuple[Array, set[Var]] | None:
        """Return the values at `_POINTS` as a function of `argument`, and the variables in between.

        None if there are inputs other than `argument` and numbers.
        """
        values: dict[Var, Array | None] = {argument: _POINTS}
        result = self._evaluate(self.root, values)
        return None if result is None else (result, set(values) - {argument})

    def _evaluate(self, call: Call, values: dict[Var, Array | None]) -> Array | None:
        operands: list[Expr] = []
        for operand in call.args:
            if isinstance(operand, GenericConst):
                array = array_of(operand)
                if array.size != 1:
                    return None
                operands.append(float(array.reshape(())))
                continue
            if operand not in values:
                inner = self.calls.get(operand)
                values[operand] = None if inner is None else self._evaluate(inner, values)
            if values[operand] is None:
                return None
            operands.append(values[operand])
        with np.errstate(all="ignore"):
            return np.asarray(_SCALAR_OPERATORS[str(call.op.name)](*operands))


def recognize(graph: Graph, root: Call, functions: Mapping[str, Function]) -> Spelling | None:
    """Recognize which of `functions` the call `root` computes, and its argument; None also if a part has another
    consumer."""
    tolerance = _TOLERANCE.get(dtype_of(root))
    if tolerance is None:
        return None
    cone = _Cone(graph, root)
    if not cone.complete or not cone.has_telltale():
        return None
    for argument in cone.edges:
        evaluated = cone.evaluate(argument)
        if evaluated is None or not _stands_alone(graph, cone, evaluated[1]):
            continue
        errors = {name: _distance(evaluated[0], function(_POINTS)) for name, function in functions.items()}
        best = min(errors, key=lambda name: errors[name])
        fits = dtype_of(argument) == dtype_of(root) and same_shape(shape_of(argument), shape_of(root))
        if errors[best] <= tolerance and fits:
            return Spelling(best, argument)
    return None


def _stands_alone(graph: Graph, cone: _Cone, inner: set[Var]) -> bool:
    return all(graph.uses(variable) <= cone.edges.get(variable, 0) for variable in inner)


def _distance(values: Array, expected: Array) -> float:
    if not bool(np.isfinite(values).all()):
        return math.inf
    return float((np.abs(values - expected) / (np.abs(_POINTS) + 1)).max())


def gelu(x: Array) -> Array:
    """x times the normal CDF of x."""
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def gelu_tanh(x: Array) -> Array:
    """The approximation of Hendrycks and Gimpel, arXiv:1606.08415."""
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))"""
    return np.asarray(1 / (1 + np.exp(-x)))


def silu(x: Array) -> Array:
    """x * sigmoid(x)"""
    return x * sigmoid(x)
