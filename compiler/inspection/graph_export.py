"""`export_graph`: exports the graph of a model's kernels as an ONNX file for Netron and Model Explorer.

It is a drawing, not a model: a node is a kernel, in a private domain, and constants have shapes but no values.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper

import schedules.ir.load_tvm  # noqa: F401  (first, so that TVM loads without torch)

# isort: split
from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar

import targets
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.driver.compile import find_target
from compiler.errors import storage_errors
from compiler.frontends.source import ImportOptions
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.rewriting.graph import operator_name, rewritable_functions
from compiler.passes.rewriting.node_tracker import NodeTracker
from compiler.profiling.attribution import kind_of, layer_label, names_of, operators_of
from compiler.support.options import Constants, Shapes
from schedules.ir.stages import Kernel
from schedules.ir.tvm_types import Expr, IRModule, SeqExpr, Var
from schedules.selection.apply import matching_rule
from schedules.selection.registry import rules

DOMAIN = "tensorwright"
_KERNEL_CALLS = ("relax.call_tir", "relax.call_tir_inplace")
_EXTERNAL_CALLS = ("relax.call_dps_packed", "relax.call_pure_packed")
_Value = str | tuple["_Value", ...]
"""The name of a tensor, or the names in a tuple."""


def export_graph(
    source: object,
    path: str | os.PathLike[str],
    target: str | targets.Target = "host",
    *,
    shapes: Shapes | None = None,
    constants: Constants | None = None,
) -> None:
    """Write the graph of a model's kernels, after layout and fusion, for Netron or Model Explorer.

    A node is a kernel: its name is that of the model's layer, its type the fused operators, and its attributes the
    kernel, its kind, the rule that schedules it and all layers that it computes.

    Args:
        source, target, shapes, constants: as in `compile`.
        path: the file to write, such as "graph.onnx".

    Raises:
        UserError: the model cannot be read or imported, or an option is invalid.
        StorageError: the file cannot be written.
    """
    model = ImportOptions(shapes=shapes, constants=constants).load(source)
    chosen = find_target(target)
    options = PassOptions(checks=model.checks, nodes=model.nodes)
    context = PipelineContext(target=chosen, machine=chosen.machine, options=options)
    lowered = run_pipeline(model.mod, context, until="fuse").mod
    graph = _graph(lowered, chosen, context.tracker)
    with storage_errors(path, "written"):
        onnx.save(graph, path)


def _graph(mod: IRModule, target: targets.Target, tracker: NodeTracker) -> onnx.ModelProto:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    functions, main = [], onnx.GraphProto()
    for variable, function in rewritable_functions(mod):
        name = str(variable.name_hint)
        writer = _Writer(mod, target, tracker, name)
        inputs = [name for each in function.params for name in _flat(writer.define(each))]
        nodes, outputs = writer.sequence(function.body)
        if name != "main":
            constants = [helper.make_node("Constant", [], [each.name]) for each in writer.constants]
            functions.append(helper.make_function(DOMAIN, name, inputs, outputs, [*constants, *nodes], imports))
            continue
        main = helper.make_graph(
            nodes,
            "main",
            [writer.types[each] for each in inputs],
            [writer.types.get(each) or onnx.ValueInfoProto(name=each) for each in outputs],
            writer.constants,
            value_info=[value for name, value in writer.types.items() if name not in (*inputs, *outputs)],
        )
    return helper.make_model(main, opset_imports=imports, functions=functions, producer_name=DOMAIN)


@dataclass
class _Writer:
    """Writes one function; `types` are the tensor types by name."""

    mod: IRModule
    target: targets.Target
    tracker: NodeTracker
    function: str
    types: dict[str, onnx.ValueInfoProto] = field(default_factory=dict)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    _values: dict[Var, _Value] = field(default_factory=dict)
    _used: Counter[str] = field(default_factory=Counter)
    _rules: dict[str, str] = field(default_factory=dict)

    def define(self, variable: Var) -> _Value:
        """The names of a variable's tensors."""
        self._values[variable] = value = self._named(str(variable.name), variable.ty)
        return value

    def sequence(self, sequence: SeqExpr) -> tuple[list[onnx.NodeProto], list[str]]:
        """The nodes of a function's body or a branch, and the names of its results."""
        if not isinstance(sequence, relax.SeqExpr):
            return [], list(_flat(self._value(sequence)))
        nodes = []
        for block in sequence.blocks:
            for binding in block.bindings:
                value = binding.value
                if isinstance(value, relax.Call | relax.If):
                    nodes.append(self._node(binding.var, value))
                else:
                    self._values[binding.var] = self._value(value)
        return nodes, list(_flat(self._value(sequence.body)))

    def _node(self, variable: Var, value: Expr) -> onnx.NodeProto:
        if isinstance(value, relax.If):
            branches = [self._branch(each) for each in (value.true_branch, value.false_branch)]
            outputs = list(_flat(self.define(variable)))
            inputs = list(_flat(self._value(value.cond)))
            return helper.make_node("If", inputs, outputs, then_branch=branches[0], else_branch=branches[1])
        kind, arguments, attributes = self._call(variable, value)
        inputs = [name for each in arguments for name in _flat(self._value(each))]
        outputs = list(_flat(self.define(variable)))
        label = attributes.pop("label", str(variable.name))
        return helper.make_node(kind, inputs, outputs, name=label, domain=DOMAIN, **attributes)

    def _branch(self, sequence: SeqExpr) -> onnx.GraphProto:
        nodes, outputs = self.sequence(sequence)
        known = [self.types.get(each) or onnx.ValueInfoProto(name=each) for each in outputs]
        return helper.make_graph(nodes, "branch", [], known)

    def _call(self, variable: Var, call: relax.Call) -> tuple[str, list[Expr], dict[str, Any]]:
        """The type, arguments and attributes of a call's node."""
        operator = operator_name(call)
        if operator in _KERNEL_CALLS:
            kernel = str(call.args[0].name_hint)
            layers = names_of(self.tracker.of_call(self.function, str(variable.name)))
            attributes = {
                "label": layer_label(layers, kernel),
                "kernel": kernel,
                "kind": kind_of(kernel),
                "rule": self._rule(call.args[0]),
                "layers": list(layers) or [kernel],
            }
            return "+".join(operators_of(kernel)) or kernel, [call.args[1]], attributes
        if operator in _EXTERNAL_CALLS:
            return str(getattr(call.args[0], "global_symbol", operator)), list(call.args[1:]), {}
        if isinstance(call.op, GlobalVar):
            return str(call.op.name_hint), list(call.args), {}
        return (operator or "call").removeprefix("relax."), list(call.args), {}

    def _rule(self, kernel: GlobalVar) -> str:
        name = str(kernel.name_hint)
        if name not in self._rules:
            known = self.target.schedule_rules() or rules()
            match = matching_rule(Kernel.of(self.mod[kernel]), self.target.machine, known)
            self._rules[name] = match[0].name if match is not None else "as-is"
        return self._rules[name]

    def _value(self, expr: Expr) -> _Value:
        if isinstance(expr, relax.Var):
            return self._values.get(expr, ())
        if isinstance(expr, GenericConst):
            (name,) = _flat(self._named("constant", expr.ty))
            info = self.types.pop(name).type.tensor_type
            dims = [int(each.dim_value) for each in info.shape.dim]
            self.constants.append(onnx.TensorProto(name=name, data_type=info.elem_type, dims=dims))
            return name
        if isinstance(expr, relax.Tuple):
            return tuple(self._value(each) for each in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            whole = self._value(expr.tuple_value)
            return whole[expr.index] if isinstance(whole, tuple) and expr.index < len(whole) else ()
        return ()  # shapes and numbers

    def _named(self, base: str, ty: Any) -> _Value:
        if isinstance(ty, relax.TupleType):
            return tuple(self._named(f"{base}.{index}", each) for index, each in enumerate(ty.fields))
        if not isinstance(ty, relax.TensorType):
            return ()
        self._used[base] += 1
        name = base if self._used[base] == 1 else f"{base}#{self._used[base]}"
        sizes = None if ty.shape is None else [int(s) if isinstance(s, tirx.IntImm) else str(s) for s in ty.shape]
        self.types[name] = helper.make_tensor_value_info(name, _element_type(str(ty.dtype)), sizes)
        return name


def _flat(value: _Value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for each in value:
            yield from _flat(each)


def _element_type(dtype: str) -> int:
    known = ELEMENT_TYPES.get(dtype)
    try:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(known.numpy))) if known is not None else 0
    except (KeyError, ValueError, TypeError):
        return 0  # ONNX has no such type
