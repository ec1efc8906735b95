"""Rule tables for rewriting Relax functions.

A rule maps one call to another expression, or to None:

    rules = RuleTable()

    @rules.on("relax.negative")
    def double_negation(graph: Graph, call: Call) -> Expr | None:
        inner = graph.call(call.args[0], "relax.negative")
        return inner.args[0] if inner is not None else None

`rules.apply(mod)` offers every call of every function to its rules, operands first, until none applies, and then
removes unused code. Rules only add: a definition is removed only if unused, so a rule cannot remove a value that
another consumer needs. A rule checks `graph.only_use(...)` if a second consumer would make the rewrite a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import tvm_ffi
from tvm import ir, relax
from tvm.ir import GenericConst, IRModule, Op

from compiler.support.model_nodes import derived_name
from schedules.ir.tvm_types import Binding, BindingBlock, Function, GlobalVar, PrimFunc

Expr: TypeAlias = ir.Expr
Call: TypeAlias = ir.Call
Var: TypeAlias = ir.Var
Rule = Callable[["Graph", Call], Expr | None]

MAX_ROUNDS = 12  # enough for chains of rewrites that enable each other; more rounds only cost time


class RuleTable:
    """Rules, by the name of the operator at the root of their pattern."""

    def __init__(self) -> None:
        self._rules: dict[str, list[Rule]] = {}

    def on(self, *operators: str) -> Callable[[Rule], Rule]:
        """Register the decorated rule for calls of `operators` ("relax.add", ...), or for "tuple-get-item"."""

        def register(rule: Rule) -> Rule:
            for operator in operators:
                self._rules.setdefault(operator, []).append(rule)
            return rule

        return register

    def apply(self, mod: IRModule) -> IRModule:
        """Rewrite until nothing changes; return `mod` itself if no rule applied."""
        for _ in range(MAX_ROUNDS):
            rewritten = self.apply_once(mod)
            if rewritten is mod:
                break
            mod = remove_unused(rewritten)
        return mod

    def apply_once(self, mod: IRModule) -> IRModule:
        """Offer each call to the rules once."""
        return rewrite_functions(mod, partial(Graph, self._rules, mod))


def rewritable_functions(mod: IRModule) -> list[tuple[GlobalVar, Function]]:
    """Return the Relax functions with their global variables, except kernel bodies and parts of code generators."""
    return [
        (variable, function)
        for variable, function in mod.functions_items()
        if isinstance(function, relax.Function)
        and not any(key in (function.attrs or {}) for key in ("Primitive", "Composite", "Codegen"))
    ]


def rewrite_functions(mod: IRModule, graph: Callable[[], Graph]) -> IRModule:
    """Rewrite each function with its own graph; return `mod` itself if none changes."""
    rewritten = {variable: graph().rewrite_function(function) for variable, function in rewritable_functions(mod)}
    return update_functions(mod, {variable: each for variable, each in rewritten.items() if each is not None})


def update_functions(mod: IRModule, changed: Mapping[GlobalVar, Function]) -> IRModule:
    """Return a copy of `mod` with functions replaced and types inferred; `mod` itself if `changed` is empty."""
    return relax.transform.Normalize()(with_functions(mod, changed)) if changed else mod


def with_functions(mod: IRModule, changed: Mapping[GlobalVar, Function | PrimFunc]) -> IRModule:
    """Return a copy of `mod` with functions replaced; `mod` itself if `changed` is empty."""
    if not changed:
        return mod
    copy = mod.clone()
    for variable, function in changed.items():
        copy.update_func(variable, function)
    return copy


def with_body(function: Function, body: Expr) -> Function:
    """Return the function with another body, keeping parameters and attributes."""
    return relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs, function.span)


def remove_unused(mod: IRModule) -> IRModule:
    """Drop unused bindings and private functions."""
    return relax.transform.DeadCodeElimination(["main"])(mod)


def operator_name(expr: Expr) -> str | None:
    """Return the operator's name if `expr` is an operator call."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, Op):
        return str(expr.op.name)
    return None


def kernel_attribute(expr: Expr, functions: Mapping[Any, Any], name: str) -> Any:
    """Return an attribute of the kernel that an expression calls; None without a kernel or attribute.

    `functions` are those of the expression's module.
    """
    if operator_name(expr) != "relax.call_tir" or not isinstance(expr.args[0], ir.GlobalVar):
        return None
    return (functions[expr.args[0]].attrs or {}).get(name)


class Graph:
    """A rule's view of the function being rewritten, for one traversal of one function."""

    def __init__(self, rules: dict[str, list[Rule]], mod: IRModule) -> None:
        self._rules = rules
        self._builder = relax.BlockBuilder(mod)
        self._definitions: dict[Var, tuple[Expr, int]] = {}
        self._uses: dict[Var, int] = {}
        self._readers: dict[Var, list[str]] = {}
        self._replaced: dict[Var, Expr] = {}
        self._block = self._block_count = 0
        self._bindings: list[Binding] = []
        self._in_dataflow = False
        self._variable: Var | None = None
        self._changed = False
        self._names = 0
        self._root = "t"

    # Queries of rules.

    def definition(self, expr: Expr) -> Expr:
        """Return the definition of `expr`: follows variables to their values if those can be used here."""
        while isinstance(expr, relax.Var):
            binding = self._definitions.get(expr)
            if binding is None or not self._visible(*binding):
                return expr
            expr = binding[0]
        return expr

    def call(self, expr: Expr, *operators: str) -> Call | None:
        """Return the call of one of `operators` that defines `expr`, or None."""
        value = self.definition(expr)
        return value if operator_name(value) in operators else None

    def uses(self, expr: Expr) -> int:
        """Return the number of consumers of `expr`, including outputs; during a traversal it can be too high, never too
        low."""
        return self._uses.get(expr, 0) if isinstance(expr, relax.Var) else 1

    def only_use(self, *exprs: Expr) -> bool:
        """True if each of `exprs` has one consumer."""
        return all(self.uses(expr) <= 1 for expr in exprs)

    def only_read_by(self, expr: Expr, *operators: str) -> bool:
        """True if all consumers of `expr` in the original function, outputs included, are calls of `operators`."""
        return isinstance(expr, relax.Var) and set(self._readers.get(expr, ("unknown",))) <= set(operators)

    @property
    def variable(self) -> Var | None:
        """The variable that the current call is bound to."""
        return self._variable

    def emit(self, expr: Expr) -> Var:
        """Bind `expr` to a new variable before the current call."""
        value = self._builder.normalize(expr)
        kind = relax.DataflowVar if self._in_dataflow else relax.Var
        self._names += 1
        variable = kind(derived_name(self._root, self._names), value.ty)
        self._append(variable, value)
        for operand in operands(value):
            self._uses[operand] = self._uses.get(operand, 0) + 1
        return variable

    # The traversal.

    def rewrite_function(self, function: Function) -> Function | None:
        """Return `function` with the rules applied, or None if none applied."""
        count_uses(function.body, self._uses, self._readers)
        body = self._rewrite_sequence(function.body)
        if not self._changed:
            return None
        return with_body(function, body)

    def _visible(self, value: Expr, block: int) -> bool:
        """Values of another block are unusable if they read variables local to that block."""
        return block == self._block or not any(isinstance(each, relax.DataflowVar) for each in operands(value))

    def _append(self, variable: Var, value: Expr) -> None:
        self._definitions[variable] = (value, self._block)
        self._bindings.append(relax.VarBinding(variable, value))

    def _rewrite_sequence(self, sequence: Expr) -> Expr:
        if not isinstance(sequence, relax.SeqExpr):
            return self._substitute(sequence)
        outer = self._bindings, self._in_dataflow, self._block
        changed_before, self._changed = self._changed, False
        blocks = [self._rewrite_block(block) for block in sequence.blocks]
        result = sequence.body
        body = self._substitute(result)
        self._bindings, self._in_dataflow, self._block = outer
        if not self._changed and body is result:
            self._changed = changed_before
            return sequence
        self._changed = True
        return relax.SeqExpr(blocks, body, sequence.span)

    def _rewrite_block(self, block: BindingBlock) -> BindingBlock:
        self._bindings = []
        self._in_dataflow = isinstance(block, relax.DataflowBlock)
        self._block_count += 1
        self._block = self._block_count
        for binding in block.bindings:
            self._rewrite_binding(binding)
        make = relax.DataflowBlock if self._in_dataflow else relax.BindingBlock
        return make(self._bindings, block.span)

    def _rewrite_binding(self, binding: Binding) -> None:
        original = binding.value
        self._root = str(binding.var.name)
        self._variable = binding.var
        value = self._substitute(original)
        if isinstance(binding, relax.MatchCast):
            answer = self.offer(value, binding.var) if isinstance(value, relax.Call) else None
            value = value if answer is None else answer
            self._changed |= value is not original
            self._bindings.append(
                binding if value is original else relax.MatchCast(binding.var, value, binding.ty, binding.span)
            )
            return
        if isinstance(value, relax.If):
            value = self._rewrite_if(value)
        elif isinstance(value, relax.Function):
            value = self._rewrite_closure(value)
        answer = self.offer(value, binding.var)
        if answer is not None:
            self._replace(binding.var, value, self._builder.normalize(answer))
        elif value is original:
            self._definitions[binding.var] = (value, self._block)
            self._bindings.append(binding)
        else:
            self._changed = True
            self._append(binding.var, value)

    def _rewrite_if(self, value: Expr) -> Expr:
        branches = [value.true_branch, value.false_branch]
        rewritten = [self._rewrite_sequence(branch) for branch in branches]
        if all(new is old for new, old in zip(rewritten, branches, strict=True)):
            return value
        return relax.If(value.cond, *rewritten, value.span)

    def _rewrite_closure(self, value: Expr) -> Expr:
        original = value.body
        body = self._rewrite_sequence(original)
        if body is original:
            return value
        return with_body(value, body)

    def offer(self, value: Expr, _variable: Var) -> Expr | None:
        """Return the first result whose type is as precise as the original's, by which later code was typed."""
        name = "tuple-get-item" if isinstance(value, relax.TupleGetItem) else operator_name(value)
        for rule in self._rules.get(name or "", ()):
            answer = rule(self, value)
            if answer is None:
                continue
            answer = self._builder.normalize(answer)
            if value.ty.is_base_of(answer.ty):
                return answer
        return None

    def _replace(self, variable: Var, value: Expr, answer: Expr) -> None:
        self._changed = True
        for operand in operands(value):
            self._uses[operand] = self._uses.get(operand, 1) - 1
        for operand in operands(answer):
            self._uses[operand] = self._uses.get(operand, 0) + 1
        escapes = self._in_dataflow and not isinstance(variable, relax.DataflowVar)
        if isinstance(answer, relax.Var | GenericConst) and not escapes:
            self._replaced[variable] = answer
        elif tvm_ffi.structural_equal(variable.ty, answer.ty):
            self._append(variable, answer)
            return
        else:  # the type is more precise now and types later code
            precise = type(variable)(variable.name, answer.ty)
            self._append(precise, answer)
            self._replaced[variable] = precise
        alias = self._replaced[variable]
        if isinstance(alias, relax.Var):
            self._uses[alias] = self._uses.get(alias, 0) + self._uses.get(variable, 0) - 1

    # Substituting replaced values.

    def _substitute(self, expr: Expr) -> Expr:
        if isinstance(expr, relax.Var):
            return self._replaced.get(expr, expr)
        if not self._replaced:
            return expr
        if isinstance(expr, relax.Call):
            return self._substitute_call(expr)
        if isinstance(expr, relax.Tuple):
            originals = list(expr.fields)
            fields = [self._substitute(field) for field in originals]
            same = all(new is old for new, old in zip(fields, originals, strict=True))
            return expr if same else self._builder.normalize(relax.Tuple(fields, expr.span))
        if isinstance(expr, relax.TupleGetItem):
            tuple_value = expr.tuple_value
            inner = self._substitute(tuple_value)
            return expr if inner is tuple_value else self._builder.normalize(relax.TupleGetItem(inner, expr.index))
        if isinstance(expr, relax.If):
            original = expr.cond
            condition = self._substitute(original)
            if condition is original:
                return expr
            return relax.If(condition, expr.true_branch, expr.false_branch, expr.span)
        return expr

    def _substitute_call(self, call: Call) -> Call:
        arguments = list(call.args)
        substituted = [self._substitute(argument) for argument in arguments]
        original = call.op
        operator = self._substitute(original) if isinstance(original, relax.Var) else original
        changed = [(new, old) for new, old in zip(substituted, arguments, strict=True) if new is not old]
        if not changed and operator is original:
            return call
        if all(tvm_ffi.structural_equal(new.ty, old.ty) for new, old in changed):
            return relax.Call(operator, substituted, call.attrs, call.ty_args, call.span, ret_ty=call.ty)
        return self._builder.normalize(relax.Call(operator, substituted, call.attrs, call.ty_args, call.span))


def operands(expr: Expr) -> Iterable[Var]:
    """Yield the variables `expr` reads, once per read; not those inside branches."""
    # Slices: iterating over a TVM array asks for its length at each element.
    if isinstance(expr, relax.Var):
        yield expr
    elif isinstance(expr, relax.Call):
        if isinstance(expr.op, relax.Var):
            yield expr.op
        for argument in expr.args[:]:
            if isinstance(argument, relax.Var):
                yield argument
            elif isinstance(argument, relax.Tuple):
                yield from operands(argument)
    elif isinstance(expr, relax.Tuple):
        for item in expr.fields[:]:
            yield from operands(item)
    elif isinstance(expr, relax.TupleGetItem):
        yield from operands(expr.tuple_value)
    elif isinstance(expr, relax.If):
        yield from operands(expr.cond)


def bindings_of(expr: Expr) -> Iterable[Binding]:
    """Yield every binding in `expr`, including branches."""
    if isinstance(expr, relax.SeqExpr):
        for block in expr.blocks:
            for binding in block.bindings:
                yield binding
                yield from bindings_of(binding.value)
    elif isinstance(expr, relax.If):
        yield from bindings_of(expr.true_branch)
        yield from bindings_of(expr.false_branch)


def count_uses(expr: Expr, counts: dict[Var, int], readers: dict[Var, list[str]]) -> None:
    """Count the reads of each variable anywhere in `expr`, branches and closures included, and record the operators.

    A reader other than an operator call is recorded as "".
    """
    if isinstance(expr, relax.SeqExpr):
        for block in expr.blocks:
            for binding in block.bindings[:]:
                count_uses(binding.value, counts, readers)
        count_uses(expr.body, counts, readers)
        return
    if isinstance(expr, relax.Function):
        count_uses(expr.body, counts, readers)
        return
    name = operator_name(expr) or ""
    for operand in operands(expr):
        counts[operand] = counts.get(operand, 0) + 1
        readers.setdefault(operand, []).append(name)
    if isinstance(expr, relax.If):
        count_uses(expr.true_branch, counts, readers)
        count_uses(expr.false_branch, counts, readers)
