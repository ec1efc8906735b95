"""Converts states that a model extends by concatenation to fixed-capacity buffers that it writes rows to.

    present = concat(past, new)      becomes      buffer = write_rows(buffer, new, position)
                                                  present = buffer[:position + rows]

The number of rows in use stays the same symbolic dimension, so that the rest of the model is unchanged; an input of
that size, which a session sets, replaces the past. Rows at computed positions (`append_rows`) are written at these
positions.

Also finds the appends to growing states in the graph, with their numbers of rows and positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import msgspec
from tvm import relax, te, tirx
from tvm.relax import op as R
from tvm.sym import Analyzer

from compiler.artifact.manifest import Requirement
from compiler.errors import InternalError, OptionError, Refusal, UnsupportedModelError
from compiler.frontends.imported_model import ImportedModel, PositionSpec, StateSpec, TensorSpec, with_rewritten_main
from compiler.passes.rewriting.graph import bindings_of, operator_name
from compiler.passes.rewriting.matching import plain, same_shape, same_size, shape_of
from compiler.passes.rewriting.state_writes import attention_call, placed_append, write_rows
from compiler.passes.rewriting.substitution import leaves, replace_leaves
from compiler.support.formula import names_in, with_names
from schedules.ir.tvm_types import Binding, BlockBuilder, Expr, Function, Index, Var

Model = TypeVar("Model", bound=ImportedModel)
_POSITION = "position"
_LENGTHS = "states are not as long as their past and the new rows: the lengths or the mask that were given do not fit"


def with_capacity(model: Model, capacity: int | str) -> Model:
    """Return the model with its growing states as buffers of `capacity` rows, written in place.

    Args:
        model: a model with states that grow; other states are unchanged.
        capacity: a number of rows; or the name of a symbolic dimension, whose size each session sets.

    Raises:
        OptionError: no state grows, states grow by different numbers of rows, or the capacity is not a number or name.
        UnsupportedModelError: a state's new value is not the old one with appended rows.
    """
    _check_capacity(model, capacity)
    growing = [state for state in model.states if state.grows]
    if not growing:
        raise OptionError(
            "capacity= is for states that grow, but the model has none",
            'name pairs in state=, as in state={"past_key_values.*": "present.*"}',
        )
    return _Growing(model, growing, capacity).model()


def _check_capacity(model: ImportedModel, capacity: object) -> None:
    if isinstance(capacity, str):
        used = {
            name
            for spec in (*model.inputs, *model.outputs)
            for size in spec.shape
            if isinstance(size, str)
            for name in names_in(size)
        }
        if not capacity.isidentifier() or capacity in used:
            raise OptionError(f"capacity={capacity!r} is not a new name of a dimension", 'as in capacity="capacity"')
    elif not isinstance(capacity, int) or isinstance(capacity, bool) or capacity < 1:
        raise OptionError(f"capacity={capacity!r} is not a number of rows", "as in capacity=1024")


class _Growing(Generic[Model]):
    """Rewrites the growing states of one model."""

    def __init__(self, model: Model, states: Sequence[StateSpec], capacity: int | str) -> None:
        self._model, self._states, self._capacity = model, states, capacity
        self._found = Appends(model, states)
        self._main, self._past, self._rows = self._found.main, self._found.past, self._found.rows
        self._size = tirx.const(capacity, "int64") if isinstance(capacity, int) else tirx.Var(capacity, "int64")
        inputs = [spec.name for spec in model.inputs]
        self._position = next(
            name
            for name in (_POSITION, *(f"{_POSITION}_{count}" for count in range(len(inputs) + 1)))
            if name not in inputs
        )

    def model(self) -> Model:
        """Return the model with buffers."""
        model, grown = self._model, {state.input: state for state in self._states}
        inputs = [self._described(spec, grown.get(spec.name)) for spec in model.inputs]
        inputs_by_name = {spec.name: spec for spec in inputs}
        sources = {state.output: state.input for state in self._states}
        outputs = [
            replace(self._described(spec, None), shape=inputs_by_name[sources[spec.name]].shape)
            if spec.name in sources
            else self._described(spec, None)
            for spec in model.outputs
        ]
        inputs.append(TensorSpec(self._position, (str(self._past.name),), "int64"))
        rows = self._rows if isinstance(self._rows, int) else str(self._rows.name)
        return replace(
            model,
            mod=with_rewritten_main(self._model.mod, self._function, "the module with a capacity"),
            inputs=inputs,
            outputs=outputs,
            states=tuple(replace(state, grows=False) if state.grows else state for state in model.states),
            position=PositionSpec(self._position, rows),
            requirements=(*map(self._renamed, model.requirements), self._room(rows)),
            checks=(*model.checks, _LENGTHS),
            indices=tuple(msgspec.structs.replace(each, symbols=self._symbols(each.symbols)) for each in model.indices),
        )

    def _described(self, spec: TensorSpec, state: StateSpec | None) -> TensorSpec:
        """Return an input or output with the single name of the rows in use, and with a state's axis set to the
        capacity."""
        shape = [self._text(size) for size in spec.shape]
        if state is not None and state.axis is not None:
            shape[state.axis] = self._capacity
        return replace(spec, shape=tuple(shape))

    def _text(self, size: int | str) -> int | str:
        if isinstance(size, int):
            return size
        return with_names(size, self._name)

    def _name(self, name: str) -> str:
        return str(self._past.name) if name in self._found.others else name

    def _symbols(self, symbols: Mapping[str, str]) -> dict[str, str]:
        return {name: self._name(dimension) for name, dimension in symbols.items()}

    def _renamed(self, requirement: Requirement) -> Requirement:
        return msgspec.structs.replace(requirement, symbols=self._symbols(requirement.symbols))

    def _room(self, rows: int | str) -> Requirement:
        """Require room for a run's rows even without a session."""
        names = [name for name in (self._capacity, str(self._past.name), rows) if isinstance(name, str)]
        return Requirement(
            left=str(self._capacity),
            relation="at least",
            right=f"{self._past.name} + {rows}",
            symbols={name: name for name in names},
            where="the states",
        )

    # The Relax function.

    def _function(self, builder: BlockBuilder) -> Function:
        params = list(self._main.params)
        buffers = {at: self._buffer(params[at], state) for at, state in self._found.at.items()}
        given = relax.Var(self._position, relax.TensorType([self._past], "int64"))
        new_params = [*(buffers.get(at, each) for at, each in enumerate(params)), given]
        builder.begin_scope(new_params)
        builder._begin_binding_block()
        position = builder.emit_te(
            lambda past: te.compute((), lambda *_: past, name="position"), self._past, primfunc_name_hint="position"
        )
        pasts = {params[at]: self._first(builder, buffer, self._past, at) for at, buffer in buffers.items()}
        growing = _GrowingFunction(builder, position, buffers, pasts, {}, [])
        bindings = [binding for block in self._main.body.blocks for binding in block.bindings]
        read = {leaf for each in bindings for leaf in leaves(self._checked(each))}
        for binding in bindings:
            if binding.var in read or not _forgets(binding):
                self._rebind(growing, binding)
        results = self._results(growing)
        block = builder._end_block()
        builder.end_scope()
        result = relax.Var("results", relax.TupleType([each.ty for each in results]))
        bindings = [*block.bindings, relax.VarBinding(result, relax.Tuple(results))]
        body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
        attrs = dict(self._main.attrs or {})
        return relax.Function(new_params, builder.normalize(body), is_pure=True).with_attr(attrs)

    def _buffer(self, param: Var, state: StateSpec) -> Var:
        shape = list(param.ty.shape.values)
        shape[state.axis or 0] = self._size
        return relax.Var(param.name, relax.TensorType(shape, param.ty.dtype))

    def _first(self, builder: BlockBuilder, buffer: Expr, count: Expr, at: int) -> Expr:
        """Return the first rows of a buffer."""
        axis = self._found.at[at].axis or 0
        zero = tirx.const(0, "int64")
        value: Expr = builder.emit(R.strided_slice(buffer, [axis], [zero], [count], assume_inbound=True))
        shape = list(buffer.ty.shape.values)
        shape[axis] = count
        if not same_shape(shape_of(value), [plain(size) for size in shape]):
            raise InternalError(f"the first rows of a state have the shape {value.ty}")
        return value

    def _rebind(self, growing: _GrowingFunction, binding: Binding) -> None:
        """Emit a binding of the model: an append as a write, other bindings unchanged, on the past's rows."""
        append = self._found.append(binding.value) if isinstance(binding, relax.VarBinding) else None
        if (
            append is not None
            and append.state not in growing.written
            and self._found.is_next(binding.var, append.state)
        ):
            growing.pasts[binding.var] = self._written(growing, append)
            self._check_length(growing, binding.value, append)
            return
        attention = self._attention(growing, binding.value)
        if attention is not None:
            growing.builder.emit_normalized(relax.VarBinding(binding.var, growing.builder.normalize(attention)))
            return
        if isinstance(binding, relax.MatchCast) and self._found.is_longer_state(binding.var):
            self._name_lengths(growing, binding)
            return
        checked = self._checked(binding)
        value = growing.builder.normalize(growing.renewed(checked))
        if isinstance(binding, relax.MatchCast) and checked.same_as(binding.value):
            growing.builder.emit_normalized(relax.MatchCast(binding.var, value, binding.ty))
        else:
            growing.builder.emit_normalized(relax.VarBinding(binding.var, value))

    def _checked(self, binding: Binding) -> Expr:
        """Return the value of a binding; for a check made redundant by equal sizes of all pasts, the checked value."""
        if not isinstance(binding, relax.MatchCast):
            return binding.value
        source = binding.value
        while isinstance(self._found.values.get(source), relax.Var):
            source = self._found.values[source]
        known = isinstance(binding.ty, relax.TensorType) and shape_of(source) is not None
        shape = binding.ty.shape if known else None
        sizes = [plain(size) for size in shape.values] if isinstance(shape, relax.ShapeExpr) else None
        return source if same_shape(shape_of(source) if known else None, sizes) else binding.value

    def _written(self, growing: _GrowingFunction, append: Append) -> Expr:
        """Return the rows in use after the new ones were written."""
        rows = [growing.renewed(each) for each in append.rows]
        new = rows[0] if len(rows) == 1 else growing.builder.emit(R.concat(rows, axis=append.axis))
        first = growing.position if append.starts is None else growing.renewed(append.starts)
        buffer = write_rows(growing.builder, growing.buffers[append.state], new, first, append.axis)
        growing.written[append.state] = buffer
        return self._first(growing.builder, buffer, self._past + self._rows, append.state)

    def _check_length(self, growing: _GrowingFunction, call: Expr, append: Append) -> None:
        """Make a run fail if the model would extend the state by anything but its new rows."""
        length, expected = call.ty.shape[append.axis], self._past + self._rows
        if append.starts is None or any(same_size(each, length) for each in growing.checked):
            return
        if not Analyzer().can_prove_equal(length, expected):
            shape = growing.builder.emit(relax.ShapeExpr([length]))
            growing.builder.match_cast(shape, relax.ShapeType([expected]), f"check_{len(self._model.checks)}_")
        growing.checked.append(length)

    def _name_lengths(self, growing: _GrowingFunction, check: Binding) -> None:
        """Let a check of a state's new value name its length, from sizes only, so that no rows are copied for it."""
        source = growing.renewed(check.value)
        growing.pasts[check.var] = source
        if isinstance(check.ty.shape, relax.ShapeExpr):
            shape = growing.builder.emit(relax.ShapeExpr(source.ty.shape.values))
            growing.builder.match_cast(shape, relax.ShapeType(check.ty.shape.values), check.var.name)

    def _attention(self, growing: _GrowingFunction, call: Expr) -> Expr | None:
        """Compute attention in place if its queries end at the rows appended to its keys and values."""
        attention = attention_call(call, self._model.mod)
        if attention is None or attention.position is None:
            return None
        appends = [self._found.append(self._found.value(each)) for each in (attention.key, attention.value)]
        position = self._found.value(attention.position)
        buffers = [
            growing.written[each.state]
            for each in appends
            if each is not None and each.starts is not None and self._found.value(each.starts).same_as(position)
        ]
        if len(buffers) < len(appends):
            return None
        key, value = buffers
        return attention.over(growing.builder, key, value, growing.renewed)

    def _results(self, made: _GrowingFunction) -> list[Expr]:
        by_output = {state.output: made.written[at] for at, state in self._found.at.items()}
        return [
            by_output[spec.name] if spec.name in by_output else made.renewed(self._found.result(index))
            for index, spec in enumerate(self._model.outputs)
        ]


def _forgets(binding: Binding) -> bool:
    """True if a check only drops a tensor's shape from its type."""
    is_cast = isinstance(binding, relax.MatchCast) and isinstance(binding.ty, relax.TensorType)
    return is_cast and not isinstance(binding.ty.shape, relax.ShapeExpr)


@dataclass(frozen=True)
class _GrowingFunction:
    """The function under construction: the number of rows in use (int64, ()), the state buffers, replacements of pasts
    and new values, the written buffers by input position, and checked lengths."""

    builder: BlockBuilder
    position: Expr
    buffers: Mapping[int, Var]
    pasts: dict[Expr, Expr]
    written: dict[int, Expr]
    checked: list[Expr]

    def renewed(self, expr: Expr) -> Expr:
        """Return an expression of the model, applied to the rows in use of the buffers."""
        return replace_leaves(expr, lambda leaf: self.pasts.get(leaf, leaf))


HINT = "leave capacity= out: each run then returns a longer tensor"


@dataclass(frozen=True)
class Append:
    """The rows appended to a state, and their axis. `starts`: position at which each sample's rows are written, int64
    (batch,); None: after all rows."""

    state: int
    rows: tuple[Expr, ...]
    axis: int
    starts: Expr | None = None


class Appends:
    """All appends of a model.

    Attributes:
        main: its main function, with equal numbers of rows in all states.
        at: the states, by input position.
        past: the number of rows in use, a symbolic dimension; `others`: all its original names.
        rows: number of rows appended to each state per run: a constant, or an input dimension.
        values: the values that variables are bound to.

    The constructor raises the errors of `with_capacity`.
    """

    def __init__(self, model: ImportedModel, states: Sequence[StateSpec]) -> None:
        self._model = model
        inputs = [spec.name for spec in model.inputs]
        self._results = [spec.name for spec in model.outputs]
        self.at = {inputs.index(state.input): state for state in states}
        main = relax.transform.ToNonDataflow()(model.mod)["main"]
        pasts = [main.params[at].ty.shape[state.axis] for at, state in self.at.items()]
        self.past = pasts[0]
        self.others = {str(each.name): self.past for each in pasts if not each.same_as(self.past)}
        self.main = main.bind_symbolic_vars(self.others) if self.others else main
        self.values = {each.var: each.value for each in bindings_of(self.main.body)}
        self.rows = self._rows_of_a_run()

    def _rows_of_a_run(self) -> Index:
        """Return the number of rows appended to each state per run: a constant, or an input dimension."""
        rows: Index | None = None
        symbols = {size for spec in self._model.inputs for size in spec.shape}
        for state in self.at.values():
            new = self._append_of(state, self.result(self._results.index(state.output)))
            count = plain(Analyzer().simplify(self._length(new) - self.past))
            if rows is not None and not Analyzer().can_prove_equal(rows, count):
                raise OptionError(
                    f"states grow by different numbers of rows: {state.name!r} by {count}, others by {rows}", HINT
                )
            if not isinstance(count, int) and not (isinstance(count, tirx.Var) and str(count.name) in symbols):
                raise OptionError(f"state {state.name!r} grows by {count} rows, which is not a size of an input", HINT)
            rows = count
        if rows is None:
            raise InternalError("no state grows")
        return rows

    def _length(self, append: Append) -> Expr:
        total: Expr = self.past
        for each in append.rows:
            total = total + each.ty.shape[append.axis]
        return total

    def result(self, index: int) -> Expr:
        """Return one result of `main`."""
        value = self.value(self.main.body.body)
        if not isinstance(value, relax.Tuple):
            raise InternalError("main does not return a tuple of its results")
        return value.fields[index]

    def value(self, expr: Expr) -> Expr:
        """Return the value that an expression is bound to, through aliases and shape checks."""
        while expr in self.values:
            expr = self.values[expr]
        return expr

    def _append_of(self, state: StateSpec, result: Expr) -> Append:
        """Return the rows by which the new value of a state extends the old one."""
        at = next(index for index, each in self.at.items() if each is state)
        call = self.value(result)
        append = self.append(call)
        if append is None or append.state != at:
            what = "If" if isinstance(call, relax.If) else operator_name(call) or "output"
            raise UnsupportedModelError(
                [
                    Refusal(
                        what.removeprefix("relax."),
                        state.output,
                        f"the new value of {state.input!r} is not Concat({state.input}, rows), so it has no capacity",
                    )
                ],
                "fix `use_cache_branch` by constants= where the model has it, export it without branches around its "
                f"cache, or {HINT}",
            )
        return append

    def append(self, call: Expr) -> Append | None:
        """Return the operation that extends a growing state: a concatenation that starts with it, or rows at computed
        positions."""
        placed = placed_append(call, self._model.mod)
        if placed is not None:
            source = self.value(placed.state)
            found = (at for at in self.at if source.same_as(self.main.params[at]))
            return next((Append(at, (placed.rows,), placed.axis, placed.starts) for at in found), None)
        if operator_name(call) != "relax.concat":
            return None
        parts = self.value(call.args[0])
        fields = list(parts.fields) if isinstance(parts, relax.Tuple) else []
        source = self.value(fields[0]) if len(fields) > 1 else None
        for at, state in self.at.items():
            axis = state.axis or 0
            concatenated = 0 if call.attrs.axis is None else int(call.attrs.axis) % len(call.ty.shape)
            if source is not None and source.same_as(self.main.params[at]) and concatenated == axis:
                return Append(at, tuple(fields[1:]), axis)
        return None

    def is_next(self, var: Var, at: int) -> bool:
        """True if a variable is the next value of a state."""
        return self.value(self.result(self._results.index(self.at[at].output))).same_as(self.value(var))

    def is_longer_state(self, var: Var) -> bool:
        """True if a variable is the new value of a state with rows at computed positions."""
        append = self.append(self.value(var))
        return append is not None and append.starts is not None
