"""Tracks the model nodes that each binding computes through the passes.

Variable names lead back to nodes (`compiler.support.model_nodes`). A variable that a pass removes hands its nodes
on to its replacement: the nearest remaining variables that read it (a convolution takes over the batch norm folded
into it). Variables that passes create without a name belong to their readers.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping

from tvm import relax
from tvm.ir import GenericConst, GlobalVar, IRModule, Op

from compiler.passes.rewriting.graph import operands, rewritable_functions
from compiler.support.model_nodes import ModelNode, original_name
from schedules.ir.tvm_types import Binding, Expr, Function, SeqExpr, Var

Nodes = tuple[ModelNode, ...]
_RESULT = ""  # represents a function's result
_MAX_SUCCESSORS = 16  # of a removed variable


class NodeTracker:
    """The model nodes of a module's variables, by name. `nodes`: the nodes of the pipeline's input module."""

    def __init__(self, nodes: Mapping[str, Nodes] | None = None) -> None:
        self.nodes: dict[str, Nodes] = dict(nodes or {})
        self._reads: dict[str, list[str]] | None = None
        self._of_groups: dict[tuple[str, str], Nodes] = {}

    def follow(self, mod: IRModule) -> None:
        """Update for the changes to the variables since the last call."""
        if not self.nodes:
            return
        reads = _reads_of(mod)
        if self._reads is not None:
            self._hand_on(self._reads, reads)
        self._reads = reads

    def of(self, variable: str) -> Nodes:
        """Return the nodes of a variable by its name: its own, then those it took over."""
        return self.nodes.get(variable) or self.nodes.get(original_name(variable), ())

    def all_of(self, mod: IRModule) -> dict[str, Nodes]:
        """Return the nodes of every variable; those without a name get their readers' nodes, or those of what they
        read."""
        reads = _reads_of(mod)
        nodes = {variable: self.of(variable) for variable in reads}
        readers = _inverted(reads)
        for variable in reversed(reads):
            if not nodes[variable]:
                nodes[variable] = _first(nodes.get(each, ()) for each in readers.get(variable, ()))
        for variable, operand in reads.items():
            if not nodes[variable]:
                nodes[variable] = _first(nodes.get(each, ()) for each in operand)
        return nodes

    def follow_grouping(self, before: IRModule, after: IRModule) -> None:
        """Record the nodes of each group that TVM's FuseOps formed from the bindings of `before`."""
        if not self.nodes:
            return
        nodes = self.all_of(before)
        groups = {
            variable: function
            for variable, function in after.functions_items()
            if isinstance(function, relax.Function) and "Primitive" in (function.attrs or {})
        }
        old = {variable.name_hint: function for variable, function in rewritable_functions(before)}
        for variable, function in rewritable_functions(after):
            if variable.name_hint in old:
                members = _Members(old[variable.name_hint], groups).of(function)
                for name, inside in members.items():
                    found = dict.fromkeys(each for one in inside for each in nodes.get(one, ()))
                    self._of_groups[str(variable.name_hint), name] = tuple(found)

    def of_call(self, function: str, variable: str) -> Nodes:
        """Return the nodes of a kernel call after grouping, by its function and the variable it is bound to."""
        return self._of_groups.get((function, variable)) or self.of(variable)

    def _hand_on(self, old_reads: Mapping[str, list[str]], new_reads: Mapping[str, list[str]]) -> None:
        there = {each for variable in new_reads for each in (variable, original_name(variable))}
        inherits = {variable for variable in old_reads if variable in there and self.of(variable)}
        readers = _nearest([*old_reads][::-1], _inverted(old_reads), inherits)
        handed: dict[str, dict[ModelNode, None]] = {}
        sources = _nearest(old_reads, old_reads, inherits)
        for variable in old_reads:
            mine = self.of(variable)
            if not mine or variable in there:
                continue
            successors = [each for each in readers[variable] if each != _RESULT]
            if not successors and _RESULT in readers[variable]:
                successors = sources[variable]
            for successor in successors:
                handed.setdefault(successor, dict.fromkeys(self.of(successor))).update(dict.fromkeys(mine))
        self.nodes.update({successor: tuple(nodes) for successor, nodes in handed.items()})


def _reads_of(mod: IRModule) -> dict[str, list[str]]:
    """Return the variables that each binding reads, by name and in order; `_RESULT` reads what functions return."""
    reads: dict[str, list[str]] = {}
    results = []
    for _, function in rewritable_functions(mod):
        results += _note_sequence(function.body, reads)
    reads[_RESULT] = results
    return reads


def _note_sequence(sequence: SeqExpr, reads: dict[str, list[str]]) -> list[str]:
    """Record the bindings of a sequence; return the variables of its result."""
    if not isinstance(sequence, relax.SeqExpr):
        return [str(each.name) for each in operands(sequence)]
    for block in sequence.blocks:
        for binding in block.bindings:
            value = binding.value
            read = [str(each.name) for each in operands(value)]
            if isinstance(value, relax.If):
                read += [
                    name for branch in (value.true_branch, value.false_branch) for name in _note_sequence(branch, reads)
                ]
            elif isinstance(value, relax.Function):
                read += _note_sequence(value.body, reads)
            reads[str(binding.var.name)] = read
    return [str(each.name) for each in operands(sequence.body)]


def _inverted(reads: Mapping[str, list[str]]) -> dict[str, list[str]]:
    readers: dict[str, list[str]] = {}
    for variable, read in reads.items():
        for each in read:
            readers.setdefault(each, []).append(variable)
    return readers


def _nearest(
    order: Iterable[str], neighbours: Mapping[str, list[str]], targets: Collection[str]
) -> dict[str, list[str]]:
    """Map each variable to the nearest wanted ones in one direction, a few at most, including `_RESULT`. `order`: the
    variables, each after its neighbors."""
    nearest: dict[str, list[str]] = {_RESULT: [_RESULT]}
    for variable in order:
        if variable == _RESULT:
            continue
        near: dict[str, None] = {}
        for each in neighbours.get(variable, ()):
            near.update(dict.fromkeys([each] if each in targets else nearest.get(each, ())))
            if len(near) > _MAX_SUCCESSORS:
                break
        nearest[variable] = list(near)
    return nearest


def _first(candidates: Iterator[Nodes]) -> Nodes:
    return next((each for each in candidates if each), ())


class _Members:
    """Groups that FuseOps formed of a function's bindings.

    A group's binding corresponds to the function's binding that calls the same kernel on the same values.
    """

    def __init__(self, function: Function, groups: Mapping[GlobalVar, Function]) -> None:
        self._groups = groups
        self._known: dict[Hashable, list[str]] = {}
        for binding in _bindings(function.body):
            name = str(binding.var.name)
            self._known.setdefault(_key(binding.value, {}), []).append(name)

    def of(self, function: Function) -> dict[str, list[str]]:
        """Map each variable bound to a group's result to the variables of the group's bindings."""
        members: dict[str, list[str]] = {}
        stands_for: dict[str, Expr] = {}
        for binding in _bindings(function.body):
            value, name = binding.value, str(binding.var.name)
            group = self._groups.get(value.op) if isinstance(value, relax.Call) else None
            if group is not None:
                members[name], stands_for[name] = self._inside(group, [_value(each, stands_for) for each in value.args])
            elif isinstance(value, relax.TupleGetItem) and isinstance(
                stands_for.get(str(value.tuple_value.name)), tuple
            ):
                stands_for[name] = stands_for[str(value.tuple_value.name)][value.index]
            elif isinstance(value, relax.TupleGetItem):  # a result of branches or of a call; FuseOps renames it
                stands_for[name] = next(iter(self._known.get(_key(value, stands_for), [])), name)
        return members

    def _inside(self, group: Function, arguments: list[Expr]) -> tuple[list[str], Function | None]:
        """Return the old variables of a group's bindings, and the group's result."""
        stands_for = {str(parameter.name): each for parameter, each in zip(group.params, arguments, strict=True)}
        inside = []
        for binding in _bindings(group.body):
            names = self._known.get(_key(binding.value, stands_for), [])
            if names:
                old = names.pop(0) if len(names) > 1 else names[0]
                inside.append(old)
                stands_for[str(binding.var.name)] = old
        return inside, _value(group.body.body, stands_for)


def _bindings(sequence: SeqExpr) -> Iterator[Binding]:
    if isinstance(sequence, relax.SeqExpr):
        for block in sequence.blocks:
            for binding in block.bindings:
                yield binding
                if isinstance(binding.value, relax.If):
                    yield from _bindings(binding.value.true_branch)
                    yield from _bindings(binding.value.false_branch)


def _value(expr: Expr, stands_for: Mapping[str, Expr]) -> Expr:
    """Return a tensor argument by name; constants are all alike, and sizes, which groups receive differently, are
    ignored."""
    if isinstance(expr, relax.Var):
        return stands_for.get(str(expr.name), str(expr.name)) if not _is_size(expr) else None
    if isinstance(expr, relax.Tuple):
        return tuple(_value(each, stands_for) for each in expr.fields)
    return "constant" if isinstance(expr, GenericConst) else None


def _is_size(variable: Var) -> bool:
    return not isinstance(variable.ty, relax.TensorType | relax.TupleType)


def _key(value: Expr, stands_for: Mapping[str, Expr]) -> Hashable:
    """Return a key equal for bindings that apply the same operation to the same values."""
    if isinstance(value, relax.Call):
        operator = value.op.name if isinstance(value.op, Op) else ""
        callees = [str(each.name_hint) for each in (value.op, *value.args) if isinstance(each, GlobalVar)]
        arguments = [_value(each, stands_for) for each in value.args]
        return (operator, *callees, *(each for each in arguments if each is not None))
    if isinstance(value, relax.TupleGetItem):
        return ("item", value.index, _value(value.tuple_value, stands_for))
    return ("other", _value(value, stands_for))
