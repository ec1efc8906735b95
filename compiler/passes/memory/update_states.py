"""update-states: update a model's states in place, in the parameters of `main` that hold them.

A chain of kernels with the attribute `UPDATES` from the parameter to the new value drops its copies. A new value
computed by one kernel after the last read of the old one is computed in the state's memory. All others are copied into
the state at the end. If an old value is still read after a write, the write goes to other memory.
A kernel that copies an operand and overwrites parts of the copy becomes one that only writes these parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tvm import relax, s_tir, tirx
from tvm.ir import GlobalVar, IRModule
from tvm_ffi import structural_equal

from compiler.errors import InternalError
from compiler.passes.context import PipelineContext
from compiler.passes.memory.liveness import ALLOCATE, IN_PLACE
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import bindings_of, operator_name, with_body
from compiler.passes.rewriting.size_variants import ANY_SIZE
from compiler.passes.rewriting.substitution import leaves
from schedules.annotations import CALLS, UPDATES
from schedules.ir.tir import structural_walk
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Binding, BlockBuilder, Buffer, Call, Expr, Function, PrimFunc, Stmt, Var

_COPY = "runtime.TVMTensorCopyFromTo"


@graph_pass("update-states", summary="Write the states of a model in place", required=True)
def update_states(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `call-kernels`: `main` writes the new value of each state of `context.options.states` to its
    parameter.

    `main` also returns the parameter for the state; no other result shares its memory.
    """
    if not context.options.states:
        return mod
    main = next(var for var in mod.functions if var.name_hint == "main")
    variants = [var for var in mod.functions if var.name_hint in _variants(mod, mod[main])]
    update = _Update(mod, mod[main], context.options.states, dispatches=bool(variants))
    functions = {main: update.function()}
    for variable in variants:  # each writes to the states that `main` passes on
        functions[variable] = _Update(mod, mod[variable], context.options.states, update.kernels).function()
    return update.kernels.module(functions)


def _variants(mod: IRModule, main: Function) -> set[str]:
    """Return the functions that `main` dispatches to by its sizes (`size_variants`); none if it computes by itself."""
    names = {var.name_hint for var in mod.functions if isinstance(mod[var], relax.Function)}
    return names & named(main) if ANY_SIZE in names else set()


@dataclass(frozen=True)
class _Write:
    """A kernel call that turns one value of a state into the next, with its time and the operand that is the old
    value."""

    time: int
    allocation: Expr
    kernel: PrimFunc
    operand: int


class _Update:
    """Rewrites one `main`; times are positions of bindings."""

    def __init__(
        self,
        mod: IRModule,
        function: Function,
        states: Iterable[tuple[int, int]],
        kernels: InPlaceKernels | None = None,
        *,
        dispatches: bool = False,
    ) -> None:
        """`kernels`: the in-place kernels known so far; `dispatches`: the called functions have written the states."""
        self._mod, self._function, self._dispatches = mod, function, dispatches
        body = function.body
        self._bindings = [binding for block in body.blocks for binding in block.bindings]
        self._roots = Roots(function.params, self._bindings)
        self._results = self._fields(body.body)
        self._states = [(function.params[parameter], field) for parameter, field in states]
        self._last_update = max(filter(self._is_update, range(len(self._bindings))), default=-1)
        self.kernels = InPlaceKernels(mod) if kernels is None else kernels

    def function(self) -> Function:
        """Return `main` with its states updated in place."""
        builder = relax.BlockBuilder()
        tail: list[Binding] = []
        copied = [] if self._dispatches else [pair for pair in self._states if not self._in_place(*pair)]
        memory = {state for state, _ in self._states} | {
            binding.var for binding in self._bindings if self._is_state(binding.value)
        }
        results = list(self._results) if self._dispatches else self._own_results(memory, tail, builder)
        for source, state in self._sources(copied, tail, builder):
            tail.append(_copy(source, state))
        for state, field in self._states:
            results[field] = state
        result = relax.Var("results", relax.TupleType([each.ty for each in results]))
        tail.append(relax.VarBinding(result, relax.Tuple(results)))
        body = relax.SeqExpr([relax.BindingBlock([*self._bindings, *tail])], result)
        old = self._function
        return with_body(old, body)

    def _fields(self, result: Expr) -> list[Expr]:
        """Return the results of `main` as a list."""
        value = self._roots.value(result)
        if isinstance(value, relax.Tuple):
            return list(value.fields)
        fields = []
        for index, ty in enumerate(result.ty.fields):
            field = relax.Var(f"result{index}", ty)
            self._bindings.append(relax.VarBinding(field, relax.TupleGetItem(result, index)))
            self._roots.note(self._bindings[-1], len(self._bindings) - 1)
            fields.append(field)
        return fields

    def _is_state(self, value: Expr) -> bool:
        return isinstance(value, relax.Var) and any(value.same_as(state) for state, _ in self._states)

    # States whose new value is written over the old one.

    def _in_place(self, state: Expr, field: int) -> bool:
        """Write the new value into the state's memory; return False if that is not possible."""
        new = self._roots.exact(self._results[field])
        if new.same_as(state):
            return True
        writes = self._chain(state, new)
        if not writes or any(not structural_equal(each.allocation.ty, state.ty) for each in writes):
            return False
        values = [state, *(each.allocation for each in writes)]
        for old, write in zip(values, writes, strict=False):
            if not self._is_read_before(old, write):
                return False
        for write in writes:
            self._write_to(state, write)
        return True

    def _chain(self, state: Expr, new: Expr) -> list[_Write]:
        """Return the writes that lead from the state to its new value, in order; empty if there are none."""
        writes: list[_Write] = []
        while not new.same_as(state):
            write = self._write_of(new)
            if write is None:
                return []
            if write.operand < 0:  # it reads no old value
                # An update without room for its rows aborts the run, before which nothing may have been written.
                return [write, *writes] if write.time > self._last_update else []
            writes.insert(0, write)
            new = self._roots.exact(self._bindings[write.time].value.args[write.operand])
        return writes

    def _is_update(self, time: int) -> bool:
        call = self._bindings[time].value
        kernel = self._mod[call.op] if isinstance(call, relax.Call) and isinstance(call.op, GlobalVar) else None
        return kernel is not None and UPDATES in (kernel.attrs or {})

    def _write_of(self, value: Expr) -> _Write | None:
        """Return the kernel that writes an allocation; None for other values."""
        allocated = self._roots.defined.get(value)
        if allocated is None or operator_name(self._bindings[allocated].value) != ALLOCATE:
            return None
        time = next((time for time in self._roots.reads(value) if time < len(self._bindings)), None)
        call = None if time is None else self._bindings[time].value
        if time is None or not isinstance(call, relax.Call) or not isinstance(call.op, GlobalVar):
            return None
        kernel = self._mod[call.op]
        if isinstance(kernel, relax.Function):
            return None
        operand = (kernel.attrs or {}).get(UPDATES)
        return _Write(time, value, kernel, -1 if operand is None else int(operand))

    def _is_read_before(self, old: Expr, write: _Write) -> bool:
        """True if every read of an old value precedes the write over it."""
        if any(old in self._roots.of(each) for each in self._results):
            return False
        late = [time for time in self._roots.reads(old) if time >= write.time]
        if not late:
            return True
        if late != [write.time]:
            return False
        arguments = list(self._bindings[write.time].value.args)
        reading = [index for index, each in enumerate(arguments) if old in self._roots.of(each)]
        if write.operand >= 0:
            return reading == [write.operand]
        allowed = [int(index) for index in (write.kernel.attrs or {}).get(IN_PLACE, ())]
        exact = all(self._roots.exact(arguments[index]).same_as(old) for index in reading)
        return exact and set(reading) <= set(allowed)

    def _write_to(self, state: Expr, write: _Write) -> None:
        """Let the kernel write to the state instead of an allocation."""
        allocated = self._roots.defined[write.allocation]
        self._bindings[allocated] = relax.VarBinding(write.allocation, state)
        if write.operand < 0:
            return
        binding = self._bindings[write.time]
        self._bindings[write.time] = relax.VarBinding(binding.var, self.kernels.call(binding.value))

    # Results and states that need a copy.

    def _own_results(self, memory: set[Expr], tail: list[Binding], builder: BlockBuilder) -> list[Expr]:
        """Return the results, copying those that share memory with a state; the states' own are replaced later."""
        fields = {field for _, field in self._states}
        results = list(self._results)
        for index, result in enumerate(results):
            if index not in fields and self._roots.of(result) & memory:
                results[index] = _copied(result, tail, builder)
        return results

    def _sources(
        self, states: list[tuple[Expr, int]], tail: list[Binding], builder: BlockBuilder
    ) -> list[tuple[Expr, Expr]]:
        """Return (state, new value) to copy; a new value in another state's memory is copied first."""
        parameters = {state for state, _ in states}
        pairs = []
        for state, field in states:
            source = self._results[field]
            pairs.append((_copied(source, tail, builder) if self._roots.of(source) & parameters else source, state))
        return pairs


def _copy(source: Buffer, target: Buffer) -> Binding:
    call = relax.Call(
        relax.ExternFunc(_COPY), [source, target], ty_args=[relax.TupleType([])], ret_ty=relax.TupleType([])
    )
    return relax.VarBinding(relax.Var("_", relax.TupleType([])), call)


def _copied(value: Expr, tail: list[Binding], builder: BlockBuilder) -> Expr:
    """Copy a value to a variable with its own memory."""
    allocation = relax.op.builtin.alloc_tensor(value.ty.shape, str(value.ty.dtype), 0)
    own = relax.Var("copy", value.ty)
    tail += [relax.VarBinding(own, builder.normalize(allocation)), _copy(value, own)]
    return own


class Roots:
    """Parameters and allocations that variables may alias: sets, since a branch or function may return one of several.
    `defined`: the time (position among the bindings) at which each variable is bound."""

    def __init__(self, parameters: Iterable[Expr], bindings: Sequence[Binding]) -> None:
        self.defined: dict[Var, int] = {}
        self._values: dict[Var, Expr] = {}
        self._roots: dict[Var, frozenset[Expr]] = {each: frozenset({each}) for each in parameters}
        self._reads: dict[Var, list[int]] = {}
        for time, binding in enumerate(bindings):
            self.note(binding, time)

    def note(self, binding: Binding, time: int) -> None:
        """Record a binding, which may read earlier ones."""
        self.defined[binding.var] = time
        self._values[binding.var] = binding.value
        for inner in bindings_of(binding.value):
            self._roots[inner.var] = self._behind(inner.var, inner.value)
        self._roots[binding.var] = self._behind(binding.var, binding.value)
        if not isinstance(binding.value, relax.Var | relax.Tuple | relax.TupleGetItem):
            read = frozenset().union(*(self.of(leaf) for leaf in leaves(binding.value)))
            for root in read:
                self._reads.setdefault(root, []).append(time)

    def of(self, expr: Expr) -> frozenset[Expr]:
        """Return the parameters and allocations whose memory an expression may alias."""
        if isinstance(expr, relax.Var):
            return self._roots.get(expr, frozenset())
        roots: frozenset[Var] = frozenset()
        for leaf in leaves(expr):
            if isinstance(leaf, relax.Var):
                roots |= self._roots.get(leaf, frozenset())
        return roots

    def exact(self, expr: Expr) -> Expr:
        """Return the variable that `expr` is an alias of, also through tuple fields."""
        while isinstance(expr, relax.Var):
            bound = self._values.get(expr)
            if isinstance(bound, relax.TupleGetItem):
                whole = self.value(bound.tuple_value)
                bound = whole.fields[bound.index] if isinstance(whole, relax.Tuple) else None
            if not isinstance(bound, relax.Var):
                break
            expr = bound
        return expr

    def value(self, expr: Expr) -> Expr:
        """Return the value that a variable is bound to, through aliases; None for a parameter."""
        variable = self.exact(expr)
        return self._values.get(variable) if isinstance(variable, relax.Var) else variable

    def reads(self, root: Expr) -> list[int]:
        """Return the times at which its memory is read or written, in order."""
        return self._reads.get(root, [])

    def _behind(self, variable: Var, value: Expr) -> frozenset[Expr]:
        if operator_name(value) == ALLOCATE:
            return frozenset({variable})
        return self.of(value)


class InPlaceKernels:
    """Kernels of a module that update an operand, converted to in-place writes on request."""

    def __init__(self, mod: IRModule) -> None:
        self._mod = mod
        self._made: dict[GlobalVar, PrimFunc] = {}
        self._replaced: set[str] = set()

    def updates(self, call: Call) -> bool:
        """True for a call of a kernel that updates an operand."""
        return isinstance(call.op, GlobalVar) and UPDATES in (self._mod[call.op].attrs or {})

    def call(self, call: Call) -> Call:
        """Return an in-place call of a kernel that updates an operand, sharing its memory with the result."""
        kernel = self._mod[call.op]
        operand = int(kernel.attrs[UPDATES])
        arguments = [each for index, each in enumerate(call.args) if index != operand]
        name = f"{call.op.name_hint}_in_place"
        self._replaced.add(str(call.op.name_hint))
        known = next((var for var in (*self._mod.functions, *self._made) if var.name_hint == name), None)
        if known is None:
            known = GlobalVar(name)
            self._made[known] = in_place_kernel(kernel, operand)
            set_type(known, self._made[known].ty)
        return relax.Call(known, arguments, call.attrs, call.ty_args, call.span, ret_ty=call.ty)

    def module(self, changed: Mapping[GlobalVar, Function]) -> IRModule:
        """Return the module with changed Relax functions and the kernels that they call, without unused ones."""
        functions = {**dict(self._mod.functions_items()), **self._made, **changed}
        used = {name for each in functions.values() for name in named(each)}
        unused = self._replaced - used
        kept = {variable: each for variable, each in functions.items() if variable.name_hint not in unused}
        return IRModule(kept, self._mod.attrs, self._mod.global_infos)


def named(function: Function | PrimFunc) -> set[str]:
    """Return the names of the global functions that a function calls."""
    if isinstance(function, tirx.PrimFunc):
        return set(map(str, (function.attrs or {}).get(CALLS, ())))
    return {leaf.name_hint for leaf in leaves(function.body) if isinstance(leaf, GlobalVar)}


def in_place_kernel(kernel: PrimFunc, operand: int) -> PrimFunc:
    """Return the kernel without that operand and without its first statement, which copies it to the result.

    Raises InternalError if it does not have the form that `UPDATES` promises.
    """
    removed = kernel.params[operand]
    body = _without_copy(kernel.body)
    reads: list[Expr] = []
    structural_walk(body, (tirx.Var, lambda variable: reads.append(variable) if variable.same_as(removed) else None))
    if reads:
        raise InternalError(f"a kernel that updates {removed.name!r} reads it after it was copied")
    params = [each for index, each in enumerate(kernel.params) if index != operand]
    attrs = {name: value for name, value in dict(kernel.attrs or {}).items() if name != UPDATES}
    return tirx.PrimFunc(params, body, kernel.ret_type).with_attr(attrs)


def _without_copy(statement: Stmt) -> Stmt:
    """Return the statements inside blocks and scopes, without the first one."""
    if isinstance(statement, tirx.SeqStmt):
        rest = list(statement.seq)[1:]
        return rest[0] if len(rest) == 1 else tirx.SeqStmt(rest)
    if isinstance(statement, tirx.AttrStmt):
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, _without_copy(statement.body))
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        body = _without_copy(block.body)
        inner = s_tir.SBlock(
            block.iter_vars,
            block.reads,
            block.writes,
            block.name_hint,
            body,
            block.init,
            block.alloc_buffers,
            block.match_buffers,
            block.annotations,
        )
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, inner)
    raise InternalError(
        f"a kernel that updates an operand does not begin with its copy but with {type(statement).__name__}"
    )
