"""Traversal of the graph: each node is evaluated, converted, expanded or refused.

Faults of a model are distinguished from ours: types are checked before a node is converted, the rest when a conversion
fails. Nodes that call functions, including those of onnx's schemas, are replaced by their bodies, with attribute
references resolved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.shape_inference
from tvm import relax

from compiler.errors import (
    CompilationError,
    InputValueRequiredError,
    InvalidModelError,
    Refusal,
    TensorwrightError,
    UnsupportedModelError,
)
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.builder import Builder
from compiler.frontends.onnx.context import NodeContext, PoisonedInputError, RefusedError
from compiler.frontends.onnx.evaluation.evaluator import evaluate
from compiler.frontends.onnx.evaluation.reference import (
    all_known_with_strings,
    fold_strings,
    folded_outputs,
    reference_outputs,
)
from compiler.frontends.onnx.loading.loader import LoadedModel, graph_initializers
from compiler.frontends.onnx.node_names import model_node
from compiler.frontends.onnx.registry import find_converter, load_installed, unknown_operator_hint
from compiler.frontends.onnx.structure import (
    RANDOM_OPERATORS,
    describe,
    live_nodes,
    normalized_domain,
    ordered_nodes,
    schema_of,
    subgraphs,
)
from compiler.frontends.onnx.values import (
    Constant,
    OptionalValue,
    Poisoned,
    Producer,
    Runtime,
    SequenceValue,
    StackedSequence,
    Symbolic,
    Value,
    is_poisoned,
)

_MAX_DEPTH = 64
_KEEPING_ELEMENTS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})


@dataclass
class Scope:
    """Values by name; a subgraph also sees those of the enclosing graph. None is an omitted optional input.

    `read` holds the names with a reader, if known. In a function's body `function` is the name of the calling node, and
    `is_expansion` is True if the body defines an operator rather than being part of the model.
    """

    parent: Scope | None = None
    values: dict[str, Value | None] = field(default_factory=dict)
    opsets: dict[str, int] = field(default_factory=dict)
    depth: int = 0
    read: set[str] | None = None
    function: str = ""
    is_expansion: bool = False

    def lookup(self, name: str) -> Value | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        raise InvalidModelError(f"nothing defines the value {name!r}")

    def child(self) -> Scope:
        """Return a nested scope."""
        return Scope(self, {}, self.opsets, self.depth + 1, None, self.function, self.is_expansion)


class Importer:
    """Imports graphs into one builder and collects refusals."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.opsets = model.opsets
        self.builder = Builder()
        self.refusals: list[Refusal] = []
        self.hint: str | None = None  # hint for the first operator without a converter
        self.missing_values: list[InputValueRequiredError] = []
        self.notes: list[str] = [*load_installed()]

    def raise_refusals(self) -> None:
        """Raise one error for all refusals, if there are any."""
        if self.refusals:
            refusals = [*self.refusals, *(error.refusal for error in self.missing_values)]
            raise UnsupportedModelError(refusals, self.hint)
        if self.missing_values:
            names = sorted({name for error in self.missing_values for name in error.inputs})
            raise InputValueRequiredError(self.missing_values[0].refusal, names)

    def import_nodes(self, nodes: Sequence[onnx.NodeProto], scope: Scope) -> None:
        """Import topologically sorted nodes into a scope."""
        for node in nodes:
            inputs = [scope.lookup(name) if name else None for name in node.input]
            outputs = self._import_node(node, inputs, scope)
            for index, name in enumerate(node.output):
                if name:
                    scope.values[name] = outputs[index]

    def import_subgraph(self, graph: onnx.GraphProto, inputs: Sequence[Value | None], outer: Scope) -> list[Value]:
        """Import a subgraph in place with the given inputs; return its outputs."""
        self.model.reader.keep_data()
        scope = outer.child()
        scope.values.update(graph_initializers(graph, self.model.reader))
        scope.values.update({spec.name: value for spec, value in zip(graph.input, inputs, strict=False)})
        outputs = [output.name for output in graph.output]
        self.import_nodes(live_nodes(ordered_nodes(graph), outputs), scope)
        return [self._required(scope, name) for name in outputs]

    def import_function(
        self,
        function: onnx.FunctionProto,
        node: onnx.NodeProto,
        inputs: Sequence[Value | None],
        depth: int,
        opsets: dict[str, int] | None = None,
    ) -> list[Value]:
        """Import a function's body in place of a node that calls it."""
        if depth > _MAX_DEPTH:
            raise InvalidModelError(f"{describe(node)}: functions call each other more than {_MAX_DEPTH} deep")
        imports = opsets or {normalized_domain(item.domain): item.version for item in function.opset_import}
        scope = Scope(None, {}, imports or self.opsets, depth + 1)
        scope.is_expansion = opsets is not None  # the schema's function, in the model's opsets
        caller = self.builder.block_builder.node
        scope.function = caller.name if caller is not None else ""
        padded = [*inputs, *[None] * (len(function.input) - len(inputs))]
        scope.values.update(zip(function.input, padded, strict=False))
        used = [name for name, output in zip(function.output, node.output, strict=False) if output]
        self.import_nodes(live_nodes(resolve_references(function, node), used), scope)
        return [self._required(scope, name) if name in used else Poisoned() for name in function.output]

    @staticmethod
    def _required(scope: Scope, name: str) -> Value:
        value = scope.lookup(name)
        if value is None:
            raise InvalidModelError(f"the output {name!r} of a function or subgraph has no value")
        return value

    def _import_node(self, node: onnx.NodeProto, inputs: list[Value | None], scope: Scope) -> list[Value]:
        context = NodeContext(self, scope, node, inputs, scope.opsets.get(normalized_domain(node.domain), 1))
        poisoned: list[Value] = [Poisoned() for _ in node.output]
        if any(is_poisoned(value) for value in inputs):
            return poisoned
        outer_sources, self.builder.sources = self.builder.sources, context.sources()
        outside, self.builder.checks.where = self.builder.checks.where, describe(node)
        bindings = self.builder.block_builder
        caller = bindings.node
        if not scope.is_expansion:
            bindings.node = model_node(node, scope.function)
        try:
            return self._convert(context, scope)
        except PoisonedInputError:
            pass
        except RefusedError as error:
            constants = folded_outputs(context)
            if constants is not None:
                return list(constants)
            self.refusals.append(error.refusal)
        except InputValueRequiredError as error:
            self.missing_values.append(error)
        except TensorwrightError:
            raise
        except RecursionError as error:
            raise InvalidModelError(f"{describe(node)} is nested too deeply") from error
        except Exception as error:
            reason = why_invalid(node, inputs, scope.opsets)
            if reason is not None:
                raise InvalidModelError(f"{describe(node)}: {reason}") from error
            raise CompilationError(f"importing {describe(node)} failed: {type(error).__name__}: {error}") from error
        finally:
            self.builder.sources, self.builder.checks.where = outer_sources, outside
            bindings.node = caller
        return poisoned

    def _convert(self, context: NodeContext, scope: Scope) -> list[Value]:
        node = context.node
        domain = normalized_domain(node.domain)
        function = self.model.functions.get((domain, node.op_type))
        if function is not None:
            return self.import_function(function, node, context.inputs, scope.depth)
        if domain == "":
            evaluated = evaluate(context)
            if evaluated is not None:
                return list(evaluated)
            # The reference implementation matches by backtracking, which may never end.
            if node.op_type != "RegexFullMatch" and all_known_with_strings(context.inputs):
                return fold_strings(context)
        wrong_types = type_error(node, context.inputs, scope.opsets)
        if wrong_types is not None:
            context.invalid(wrong_types)
        convert = find_converter(node.op_type, context.opset, domain)
        if convert is not None:
            return self._with_inputs_named(self._as_values(convert(context), context), context)
        expanded = schema_function(node, context.inputs, scope.opsets)
        if expanded is None:
            where = f" of domain {domain!r}" if domain else ""
            self.hint = self.hint or unknown_operator_hint(node.op_type, domain)
            context.refuse(f"the operator{where} is not supported in opset {context.opset}")
        return self.import_function(expanded, node, context.inputs, scope.depth, scope.opsets)

    def _with_inputs_named(self, values: list[Value], context: NodeContext) -> list[Value]:
        """Return the values; a result with an input's elements in another shape is checked like that input."""
        first, result = context.inputs[:1], values[0] if values else None
        if _keeps_elements(context) and isinstance(first[0], Runtime) and isinstance(result, Runtime):
            self.builder.checks.same_elements(result.expr, first[0].expr)
        return values

    def _as_values(self, result: object, context: NodeContext) -> list[Value]:
        items = list(result) if isinstance(result, (list, tuple)) else [result]
        if len(items) == 1 and isinstance(items[0], relax.Expr) and isinstance(items[0].ty, relax.TupleType):
            bound = self.builder.emit(items[0])
            items = [relax.TupleGetItem(bound, index) for index in range(len(bound.ty.fields))]
        items += [None] * (len(context.node.output) - len(items))
        return [self._as_value(item, context, index) for index, item in enumerate(items)]

    def _as_value(self, item: object, context: NodeContext, index: int) -> Value:
        if isinstance(item, (Constant, Symbolic, Runtime, SequenceValue, StackedSequence, OptionalValue, Poisoned)):
            value: Value = item
        elif isinstance(item, (np.ndarray, np.generic)):
            value = Constant(np.asarray(item))
        elif isinstance(item, relax.Expr):
            bound = self.builder.with_short_sizes(self.builder.emit(item))
            dtype = moved_dtype(context.node, context.inputs, context.scope.opsets, index) or str(bound.ty.dtype)
            value = Runtime(bound, dtype, context.sources())
        elif context.output_used(index):
            context.refuse(f"its output {index} is not computed")
        else:
            return Poisoned()
        if isinstance(value, Runtime):
            value = self._with_producer(value, context, index)
        return value

    @staticmethod
    def _with_producer(value: Runtime, context: NodeContext, index: int) -> Runtime:
        """Make a value foldable if it is computed only from constants."""
        foldable = all(
            item is None or isinstance(item, Constant) or (isinstance(item, Runtime) and item.producer is not None)
            for item in context.inputs
        )
        if (
            foldable
            and value.producer is None
            and context.operator not in {*RANDOM_OPERATORS, "Dropout"}
            and not subgraphs(context.node)
        ):
            value.producer = Producer(context.node, tuple(context.inputs), index, context.opset)
        return value


def to_tensor(importer: Importer, value: Value | None, name: str) -> Runtime:
    """Return a model output as a tensor of the module. Refuses sequences, optionals and types without a run-time
    form."""
    if isinstance(value, (Constant, Symbolic, Runtime)):
        if not dtypes.is_carried(value.dtype):
            raise RefusedError(Refusal("model output", name, f"{value.dtype} tensors are not supported at run time"))
        if isinstance(value, Runtime):
            return value
        return Runtime(importer.builder.materialize(value), value.dtype)
    kind = "a sequence" if isinstance(value, SequenceValue | StackedSequence) else "an optional"
    raise RefusedError(Refusal("model output", name, f"{kind} cannot be a model output; only tensors can"))


def _keeps_elements(context: NodeContext) -> bool:
    """True if the first output has exactly the elements of the first input, with unchanged values."""
    if not context.inputs or context.node.domain not in ("", "ai.onnx"):
        return False
    if context.node.op_type == "Cast":
        return (
            context.has_input(0)
            and context.dtype(0) == "int32"
            and context.attribute("to", 0) == onnx.TensorProto.INT64
        )
    return context.node.op_type in _KEEPING_ELEMENTS


_MAX_TRIAL_ELEMENTS = 2**14
_TYPE_WORDS = {"float32": "float", "float64": "double", "float4_e2m1fn": "float4e2m1", "float8_e8m0fnu": "float8e8m0"}


def type_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Describe element types that the operator's schema does not allow, or return None."""
    domain = normalized_domain(node.domain)
    schema = schema_of(node.op_type, opsets.get(domain, 1), domain)
    if schema is None or not schema.inputs:
        return None
    bound: dict[str, str] = {}
    constraints = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for index, value in enumerate(inputs):
        if not isinstance(value, (Constant, Symbolic, Runtime)):
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        kind = f"tensor({_TYPE_WORDS.get(value.dtype, value.dtype).replace('_', '')})"
        allowed = constraints.get(formal.type_str, {formal.type_str})
        optional = {f"optional({kind})", f"seq({kind})"}
        if value.dtype == "bfloat16" and "tensor(float16)" in allowed:
            kind = "tensor(float16)"  # PyTorch writes whole nets in bfloat16 in opsets where few operators support it
        if kind not in allowed and not optional & allowed:
            return f"input {index} ({formal.name}) is of type {value.dtype}, which the operator does not take"
        if formal.is_homogeneous and bound.setdefault(formal.type_str, value.dtype) != value.dtype:
            return f"inputs of one type are expected, but some are {bound[formal.type_str]} and some {value.dtype}"
    return None


def moved_dtype(
    node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int], output: int
) -> str | None:
    """Return the type of an output that has the type of an input carried as another TVM type; None otherwise."""
    carried = {
        index: value.dtype
        for index, value in enumerate(inputs)
        if isinstance(value, (Constant, Symbolic, Runtime)) and dtypes.carrier(value.dtype) != value.dtype
    }
    domain = normalized_domain(node.domain)
    schema = schema_of(node.op_type, opsets.get(domain, 1), domain) if carried else None
    if schema is None or not schema.inputs or not schema.outputs:
        return None
    output_type = schema.outputs[min(output, len(schema.outputs) - 1)].type_str
    for index, dtype in carried.items():
        if schema.inputs[min(index, len(schema.inputs) - 1)].type_str == output_type:
            return dtype
    return None


def why_invalid(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Return the reason why a node cannot be computed on inputs of these types and shapes, or None if none is found."""
    return _inference_error(node, inputs, opsets) or _reference_error(node, inputs, opsets)


def _inference_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Return the error of onnx's own type and shape inference, or None."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    del copy.input[:]
    copy.input.extend("" if value is None else f"input_{index}" for index, value in enumerate(inputs))
    infos, initializers = [], []
    for index, value in enumerate(inputs):
        if value is not None:
            infos.append(onnx.helper.make_value_info(f"input_{index}", type_of(value)))
        if isinstance(value, Constant) and value.dtype in ("int64", "int32") and value.size < 1024:
            initializers.append(onnx.numpy_helper.from_array(value.array, f"input_{index}"))
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = onnx.helper.make_graph([copy], "diagnosis", infos, outputs, initializers)
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = onnx.helper.make_model(graph, opset_imports=imports)
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except Exception as error:  # InferenceError and others
        return " ".join(str(error).split())
    return None


def _reference_error(node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]) -> str | None:
    """Return the error of onnx's reference implementation for inputs of these shapes; only small ones are tried."""
    arrays: list[np.ndarray | None] = []
    for value in inputs:
        if value is None:
            arrays.append(None)
            continue
        shape = value.shape if isinstance(value, (Constant, Runtime)) else None
        if shape is None or not all(isinstance(size, int) for size in shape) or math.prod(shape) > _MAX_TRIAL_ELEMENTS:
            return None
        known = value.array if isinstance(value, Constant) else None
        dtype = dtypes.numpy_dtype(value.dtype if isinstance(value, (Constant, Runtime)) else "float32")
        arrays.append(known if known is not None else np.ones(shape, dtype))
    domain = normalized_domain(node.domain)
    try:
        reference_outputs(node, arrays, opsets.get(domain, 1), opsets)
    except (NotImplementedError, RuntimeError):
        return None
    except Exception as error:  # numpy errors about shapes and values
        return " ".join(f"{type(error).__name__}: {error}".split())[:400]
    return None


def resolve_references(function: onnx.FunctionProto, call: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the function's nodes with references to its attributes replaced by the caller's values, or by defaults."""
    attributes = {attribute.name: attribute for attribute in function.attribute_proto}
    attributes.update({attribute.name: attribute for attribute in call.attribute})
    nodes = []
    for node in function.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        _resolve(copy, attributes)
        if not copy.name:
            copy.name = "/".join(filter(None, [call.name or next(iter(call.output), ""), next(iter(copy.output), "")]))
        nodes.append(copy)
    return nodes


def _resolve(node: onnx.NodeProto, attributes: dict[str, onnx.AttributeProto]) -> None:
    resolved = []
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            source = attributes.get(attribute.ref_attr_name)
            if source is None:
                continue
            copy = onnx.AttributeProto()
            copy.CopyFrom(source)
            copy.name = attribute.name
            resolved.append(copy)
        else:
            resolved.append(attribute)
    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in resolved]
    del node.attribute[:]
    node.attribute.extend(copies)
    for graph in subgraphs(node):
        for inner in graph.node:
            _resolve(inner, attributes)


def schema_function(
    node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]
) -> onnx.FunctionProto | None:
    """Return the body with which onnx defines the operator, or None if it has none for these inputs."""
    domain = normalized_domain(node.domain)
    opset = opsets.get(domain, 1)
    schema = schema_of(node.op_type, opset, domain)
    if schema is None:
        return None
    function = _body(schema, node, inputs, opsets)
    if function is not None:
        declared = {attribute.name for attribute in function.attribute_proto}
        defaults = [
            a.default_value for name, a in schema.attributes.items() if name not in declared and a.default_value.name
        ]
        function.attribute_proto.extend(defaults)
    return function


def _body(
    schema: Any, node: onnx.NodeProto, inputs: Sequence[Value | None], opsets: dict[str, int]
) -> onnx.FunctionProto | None:
    if schema.has_function:
        fitting = [v for v in schema.function_opset_versions if v <= opsets.get("", 1)]
        if fitting:
            body = schema.get_function_with_opset_version(max(fitting))
            return onnx.FunctionProto.FromString(body)
    if schema.has_context_dependent_function:
        types = [type_of(value).SerializeToString() for value in inputs]
        fitting = [v for v in schema.context_dependent_function_opset_versions if v <= opsets.get("", 1)]
        for version in sorted(fitting, reverse=True):
            body = schema.get_context_dependent_function_with_opset_version(version, node.SerializeToString(), types)
            if body:
                return onnx.FunctionProto.FromString(body)
    return None


def type_of(value: Value | None) -> onnx.TypeProto:
    """Return a value's type as an onnx proto; empty for a missing value."""
    if isinstance(value, (Constant, Symbolic, Runtime)):
        shape = [d if isinstance(d, int) else str(d) for d in value.shape]
        return onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.dtype], shape)
    if isinstance(value, SequenceValue):
        if value.values:
            return onnx.helper.make_sequence_type_proto(type_of(value.values[0]))
        return onnx.helper.make_sequence_type_proto(
            onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.dtype or "float32"], None)
        )
    if isinstance(value, StackedSequence):
        shape = [d if isinstance(d, int) else str(d) for d in value.tensor.shape[1:]]
        element = onnx.helper.make_tensor_type_proto(dtypes.NUMBERS[value.tensor.dtype], shape)
        return onnx.helper.make_sequence_type_proto(element)
    if isinstance(value, OptionalValue) and value.value is not None:
        return onnx.helper.make_optional_type_proto(type_of(value.value))
    return onnx.TypeProto()
