"""Appends to growing states: where in the graph, how many rows, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvm import relax, tirx
from tvm.sym import Analyzer

from compiler.errors import InternalError, OptionError, Refusal, UnsupportedModelError
from compiler.frontends.imported_model import ImportedModel, StateSpec
from compiler.passes.rewriting.graph import bindings_of, operator_name
from compiler.passes.rewriting.matching import plain
from compiler.passes.rewriting.state_appends import placed_append

if TYPE_CHECKING:
    from schedules.ir.tvm_types import Expr, Index, Var

HINT = "leave capacity= out: each run then returns a longer tensor"


@dataclass(frozen=True)
class Append:
    """The rows that are appended to a state, and the axis of the rows.

    Attributes:
        starts: position at which each sample's rows are written, int64 (batch,); None: after all rows.
    """

    state: int
    rows: tuple[Expr, ...]
    axis: int
    starts: Expr | None = None


class Appends:
    """The appends of one model.

    Attributes:
        main: its function, whose states all have the same number of rows.
        at: the states by the positions of their inputs.
        past: the number of rows in use, a symbolic dimension; `others`: further names that it had, and it.
        rows: number of rows that a run appends to each state: a constant, or an input dimension.
        values: values that variables are bound to.

    Raises as `with_capacity` where it is made.
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
        """Number of rows that a run appends to each state: a constant, or an input dimension."""
        found: Index | None = None
        symbols = {size for spec in self._model.inputs for size in spec.shape}
        for state in self.at.values():
            new = self._append_of(state, self.result(self._results.index(state.output)))
            count = plain(Analyzer().simplify(self._length(new) - self.past))
            if found is not None and not Analyzer().can_prove_equal(found, count):
                raise OptionError(
                    f"states grow by different numbers of rows: {state.name!r} by {count}, others by {found}", HINT
                )
            if not isinstance(count, int) and not (isinstance(count, tirx.Var) and str(count.name) in symbols):
                raise OptionError(f"state {state.name!r} grows by {count} rows, which is not a size of an input", HINT)
            found = count
        if found is None:
            raise InternalError("no state grows")
        return found

    def _length(self, append: Append) -> Expr:
        total: Expr = self.past
        for each in append.rows:
            total = total + each.ty.shape[append.axis]
        return total

    def result(self, index: int) -> Expr:
        """One result of `main`."""
        value = self.value(self.main.body.body)
        if not isinstance(value, relax.Tuple):
            raise InternalError("main does not return a tuple of its results")
        return value.fields[index]

    def value(self, expr: Expr) -> Expr:
        """Value that an expression is bound to, behind names and checks of its shape."""
        while expr in self.values:
            expr = self.values[expr]
        return expr

    def _append_of(self, state: StateSpec, result: Expr) -> Append:
        """The rows that the new value of a state has more than the old one."""
        at = next(place for place, each in self.at.items() if each is state)
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
        """Operation that makes a growing state longer: a concatenation whose first part it is, or rows at computed
        places."""
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
        """True if a variable is the new value of a state whose rows are at computed places."""
        append = self.append(self.value(var))
        return append is not None and append.starts is not None
