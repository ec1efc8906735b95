"""Finds what can be quantized in a graph, and the tensors involved.

Classification of operators for the quantizer.

A linear operator (matmul, convolution) multiplies activations by constant weights and sums: it can compute in integers.
Opaque calls read several tensors, or every element more than once: their operands are in memory and should be integers.
Elementwise operators are fused into the kernel before them and need nothing. A lookup reads rows of a constant table,
which is smaller as integers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule

from compiler.compression.model import LayerNames
from compiler.compression.quantization.edit import main_bindings
from compiler.passes.rewriting.constant_products import Interleaved
from compiler.passes.rewriting.graph import Call, Var, operands, operator_name
from compiler.passes.rewriting.matching import BINARY, UNARY, Array, array_of, dtype_of, rank_of, same_shape, shape_of
from compiler.passes.rewriting.node_tracker import Nodes
from compiler.support.registry import registers_in
from schedules.ir.tvm_types import Expr


@dataclass(frozen=True, eq=False)
class Layer:
    """A matmul or convolution that can compute in integers, or a lookup whose table can be integer.

    Attributes:
        name: for people; the same in every run.
        variable: the variable bound to its result.
        data: the activations it reads; for a lookup the indices.
        weight: its constant weights, or the table.
        bias: the variable bound to the sum with its constant bias, if nothing else reads the layer's result.
    """

    name: str
    variable: Var
    call: Call
    operator: LinearOperator
    bias: Var | None

    @property
    def data(self) -> Var:
        return self.call.args[self.operator.data]

    @property
    def is_look_up(self) -> bool:
        return self.operator is LOOK_UP

    @property
    def weight(self) -> Array:
        return array_of(self.call.args[self.operator.weight])


@dataclass(frozen=True, eq=False)
class OpaqueCall:
    """A call that is neither linear nor elementwise, or that joins two tensors; `data` lists its operands."""

    variable: Var
    call: Call
    data: tuple[Var, ...]


@dataclass
class LayerGraph:
    """The layers of a module, their connections, and the layers that stay in float with the reasons.

    Attributes:
        names: maps layers to the names of their nodes in the model.
        layers: the matmuls and convolutions.
        look_ups: lookups; they read no activations and return floats, so only their tables can be integer.
        refused: (name, reason) of matmuls and convolutions without an integer kernel.
        roots: the materialized tensor that each float variable is an elementwise function of.
        readers: for each root, its readers: the variables of layers and opaque calls, None for anything else.
    """

    names: LayerNames
    layers: list[Layer] = field(default_factory=list)
    look_ups: list[Layer] = field(default_factory=list)
    opaque_calls: list[OpaqueCall] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    definitions: dict[Var, Call] = field(default_factory=dict)
    roots: dict[Var, Var] = field(default_factory=dict)
    readers: dict[Var, list[Var | None]] = field(default_factory=dict)

    def root(self, variable: Var) -> Var:
        return self.roots.get(variable, variable)

    def read(self, operand: Var, reader: Var | None) -> None:
        self.readers.setdefault(self.root(operand), []).append(reader)


def find_layers(
    mod: IRModule, operators: Collection[str] = (), nodes: Mapping[str, Nodes] = MappingProxyType({})
) -> LayerGraph:
    """The layers and opaque calls of the outermost code of `main`.

    Args:
        operators: operators that the target's accelerator computes in integers, by name.
        nodes: nodes of the model, by variable, for the names of layers.
    """
    graph = LayerGraph(LayerNames(nodes))
    bindings = main_bindings(mod)
    biases = _biases(bindings)
    for variable, value in bindings:
        if isinstance(value, relax.Call):
            graph.definitions[variable] = value
            _note_call(graph, variable, value, biases, operators)
        elif not isinstance(value, relax.Tuple | relax.TupleGetItem):
            _note_rest(graph, operands(value))
        else:
            _note_rest(graph, (each for each in operands(value) if "float" in dtype_of(each)))
    _note_rest(graph, operands(mod["main"].body.body))
    return graph


def _note_rest(graph: LayerGraph, read: Iterable[Var]) -> None:
    for each in read:
        graph.read(each, None)


def _note_call(
    graph: LayerGraph, variable: Var, call: Call, biases: dict[Var, Var], operators: Collection[str]
) -> None:
    operator = linear_operator_of(call, operators)
    name = ""
    if isinstance(operator, LinearOperator | str) or is_look_up(call):
        name = graph.names.name(variable, label_of(call, len(graph.definitions)))
    if isinstance(operator, LinearOperator):
        layer = Layer(name, variable, call, operator, biases.get(variable))
        graph.layers.append(layer)
        graph.read(layer.data, variable)
        return
    if is_look_up(call):
        graph.look_ups.append(Layer(name, variable, call, LOOK_UP, None))
    if isinstance(operator, str):
        graph.refused.append((name, operator))
    data = [each for _, each in activations_of(call)]
    roots = {graph.root(each) for each in data}
    if is_transparent(call) and len(roots) == 1:
        graph.roots[variable] = roots.pop()
    elif data and (
        operator_name(call) in OPAQUE_OPERATORS or (operator_name(call) in ELEMENTWISE and is_transparent(call))
    ):
        graph.opaque_calls.append(OpaqueCall(variable, call, tuple(data)))
        for operand in data:
            graph.read(operand, variable)
    else:
        _note_rest(graph, operands(call))


def _biases(bindings: list[tuple[Var, relax.Expr]]) -> dict[Var, Var]:
    """For each variable read only by one addition of a constant, the variable of the sum."""
    uses: dict[Var, int] = {}
    for _, value in bindings:
        for each in operands(value):
            uses[each] = uses.get(each, 0) + 1
    biases = {}
    for variable, value in bindings:
        if operator_name(value) == "relax.add" and isinstance(value.args[1], GenericConst):
            data = value.args[0]
            if isinstance(data, relax.Var) and uses[data] == 1 and same_shape(shape_of(data), shape_of(variable)):
                biases[data] = variable
    return biases


@dataclass(frozen=True, eq=False)
class Placement:
    """Positions of the pairs of quantize and dequantize.

    Attributes:
        layers: those that compute in integers, and lookups of integers.
        opaque_calls: those that read integers.
        sites: variables of which layers and opaque calls read a quantized copy.
        operands: for each reader's variable, the variables of which it reads that copy.
        ties: sites that have the range of another site, so that integers pass unchanged.
        made: sites that are quantized at their definition, for all readers.
    """

    layers: tuple[Layer, ...]
    opaque_calls: tuple[OpaqueCall, ...]
    sites: tuple[Var, ...]
    operands: dict[Var, frozenset[Var]]
    ties: dict[Var, Var]
    made: frozenset[Var] = frozenset()


def place(graph: LayerGraph, in_float: Collection[str] = ()) -> Placement:
    """Pairs for all layers except those named, and for opaque calls between quantized layers."""
    layers = [layer for layer in graph.layers if layer.name not in in_float]
    look_ups = [layer for layer in graph.look_ups if layer.name not in in_float]
    opaque_calls = _enclosed(graph, layers)
    read: dict[Var, frozenset[Var]] = {layer.variable: frozenset([layer.data]) for layer in layers}
    read.update({layer.variable: frozenset() for layer in look_ups})
    integer = {layer.variable for layer in layers}
    for opaque_call in opaque_calls:
        read[opaque_call.variable] = frozenset(opaque_call.data) - _unrounded(graph, opaque_call, integer)
    sites = list(dict.fromkeys(each for group in read.values() for each in sorted(group, key=_order(graph))))
    return Placement((*layers, *look_ups), tuple(opaque_calls), tuple(sites), read, ties(graph, opaque_calls, sites))


def _order(graph: LayerGraph) -> Callable[[Var], int]:
    indices = {variable: index for index, variable in enumerate(graph.definitions)}
    return lambda variable: indices.get(variable, -1)


def _enclosed(graph: LayerGraph, layers: list[Layer]) -> list[OpaqueCall]:
    """The opaque calls whose operands all come from integer kernels and whose result goes to one."""
    opaque_calls = list(graph.opaque_calls)
    while True:
        integer = {layer.variable for layer in layers} | {opaque_call.variable for opaque_call in opaque_calls}
        enclosed = [
            opaque_call
            for opaque_call in opaque_calls
            if all(graph.root(each) in integer for each in opaque_call.data)
            and any(reader in integer for reader in graph.readers.get(opaque_call.variable, ()) if reader is not None)
        ]
        if len(enclosed) == len(opaque_calls):
            return enclosed
        opaque_calls = enclosed


def _unrounded(graph: LayerGraph, opaque_call: OpaqueCall, layers: Collection[Var]) -> frozenset[Var]:
    """Operands of an elementwise join with no other reader: a layer's sums, scaled, are joined directly.

    The last one's kernel computes the join as its epilogue. Another would be dequantized in the kernel that quantizes
    it, so quantizing it would save nothing.
    """
    if operator_name(opaque_call.call) not in ELEMENTWISE:
        return frozenset()
    return frozenset(
        operand
        for operand in opaque_call.data
        if graph.root(operand) in layers
        and graph.readers.get(graph.root(operand)) == [opaque_call.variable]
        and same_shape(shape_of(operand), shape_of(opaque_call.variable))
    )


def ties(graph: LayerGraph, opaque_calls: list[OpaqueCall], sites: list[Var]) -> dict[Var, Var]:
    """Sites after a maximum or a move have the range of the site before it; operands of a join have its range."""
    known, tied = set(sites), {}
    names = {opaque_call.variable: operator_name(opaque_call.call) for opaque_call in opaque_calls}
    for site in sites:
        source = site
        while True:
            call = graph.definitions.get(source)
            passes = names.get(source) in MAXIMA or (
                call is not None and operator_name(call) in MOVES - {"relax.nn.pad"}
            )
            if call is None or not passes or not isinstance(call.args[0], relax.Var):
                break
            source = call.args[0]
            if source in known:
                tied[site] = source
                break
    for opaque_call in opaque_calls:
        if names[opaque_call.variable] == "relax.concat" and opaque_call.variable in known:
            for each in opaque_call.data:
                if each in known and each not in tied:
                    tied[each] = opaque_call.variable
    return tied


@dataclass(frozen=True)
class LinearOperator:
    """A matmul, convolution or lookup: indices of its operands, the axes of weights and result that index the filters,
    and whether the weights are a matrix."""

    data: int
    weight: int
    filters: int
    channels: int
    is_matrix: bool = False


LOOK_UP = LinearOperator(data=1, weight=0, filters=0, channels=-1)
_CONSTANT = "both operands are constants"
_TABLE_ELEMENTS = 1024  # smaller tables are not worth one scale per row

# The operator; the reason why integers cannot compute it; or None if the call is not a matmul or convolution.
Describe = Callable[[Call], LinearOperator | str | None]
_LINEAR_OPERATORS: dict[str, Describe] = {}
linear_operator = registers_in(_LINEAR_OPERATORS)  # for calls of operators


def linear_operator_of(call: Call, operators: Collection[str] = ()) -> LinearOperator | str | None:
    """Classify a call: a linear operator, the reason why one stays in float, or None for other calls. `operators`:
    operators that the target's accelerator computes in integers, by name."""
    name = operator_name(call) or ""
    describe = _LINEAR_OPERATORS.get(name)
    if describe is _transposed_convolution and operators and name not in operators:
        return "no integer kernel for transposed convolutions"
    return None if describe is None else describe(call)


def integer_name(call: Call) -> str:
    """The name of an operator or kernel in target descriptions."""
    name = operator_name(call) or ""
    return f"kernel.{call.args[0].name_hint.rstrip('0123456789')}" if name == "relax.call_tir" else name


@linear_operator(*(f"relax.nn.conv{rank}d" for rank in (1, 2, 3)))
def _convolution(call: Call) -> LinearOperator | str | None:
    if not isinstance(call.args[1], GenericConst):
        return "its weights are not constant"
    if isinstance(call.args[0], GenericConst):
        return _CONSTANT
    if dtype_of(call) != "float32":
        return f"it computes in {dtype_of(call)}"
    data, kernel = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if not data.startswith("NC") or not kernel.startswith("OI"):
        return f"no integer kernel for the layouts {data} and {kernel}"
    return LinearOperator(0, 1, 0, 1)


@linear_operator(*(f"relax.nn.conv{rank}d_transpose" for rank in (1, 2, 3)))
def _transposed_convolution(call: Call) -> LinearOperator | str | None:
    if not isinstance(call.args[1], GenericConst):
        return "its weights are not constant"
    if isinstance(call.args[0], GenericConst):
        return _CONSTANT
    if int(call.attrs.groups) != 1 or dtype_of(call) != "float32":
        return "a transposed convolution in groups, or not of float32"
    if Interleaved.of(call) is None:
        return "no integer kernel for transposed convolutions that are dilated or of dynamic size"
    return LinearOperator(0, 1, 1, 1)


@linear_operator("relax.matmul")
def _matmul(call: Call) -> LinearOperator | str | None:
    left, right = call.args[:2]
    if isinstance(left, GenericConst) and isinstance(right, GenericConst):
        return _CONSTANT
    if isinstance(left, GenericConst):
        return "its left operand is constant"
    if not isinstance(right, GenericConst):
        return "both operands are activations"
    if dtype_of(call) != "float32":
        return f"it computes in {dtype_of(call)}"
    if rank_of(right) != 2 or (rank_of(left) or 0) < 2:
        return "no integer kernel for weights that are not a matrix, or for a vector"
    return LinearOperator(0, 1, 1, int(call.ty.ndim) - 1, is_matrix=True)


def is_look_up(call: Call) -> bool:
    """True if the call looks up rows of a large constant float32 matrix."""
    if operator_name(call) != "relax.take" or not isinstance(call.args[0], GenericConst):
        return False
    table, index = call.args[:2]
    large = rank_of(table) == 2 and int(np.prod(shape_of(table) or ())) >= _TABLE_ELEMENTS
    return large and dtype_of(table) == "float32" and call.attrs.axis == 0 and isinstance(index, relax.Var)


MOVES = frozenset(
    f"relax.{name}"
    for name in ("reshape", "permute_dims", "squeeze", "expand_dims", "flatten", "strided_slice", "split", "nn.pad")
)
MAXIMA = frozenset(f"relax.nn.max_pool{rank}d" for rank in (1, 2, 3))
_AVERAGES = frozenset(("relax.mean", *(f"relax.nn.avg_pool{rank}d" for rank in (1, 2, 3))))
_JOINS = frozenset(("relax.concat",))
ELEMENTWISE = frozenset(f"relax.{name}" for name in ("add", "subtract", "multiply", "maximum", "minimum"))
OPAQUE_OPERATORS = MAXIMA | _AVERAGES | _JOINS


def is_transparent(call: Call) -> bool:
    """True if the call is elementwise or moves elements."""
    name = operator_name(call)
    if name == "relax.call_tir":
        return "clip" in call.args[0].name_hint  # a clamp that propagates NaN, like ONNX's
    return name in MOVES or name in UNARY or name in BINARY


def activations_of(call: Call) -> list[tuple[int, Expr]]:
    """(argument index, variable) of the float tensors that a call reads; those in a tuple each with its index."""
    activations = []
    for index, argument in enumerate(call.args):
        fields = list(argument.fields) if isinstance(argument, relax.Tuple) else [argument]
        activations += [(index, each) for each in fields if isinstance(each, relax.Var) and "float" in dtype_of(each)]
    return activations


def label_of(call: Call, number: int) -> str:
    """A name for reports: the operator, its number in the graph and its sizes."""
    name = (operator_name(call) or "call").rsplit(".", 1)[-1]
    weight = 0 if name == "take" else 1
    shape = shape_of(call.args[weight]) if len(call.args) > weight else None
    sizes = "x".join(map(str, shape)) if shape else ""
    return f"{name}_{number} {sizes}".strip()
