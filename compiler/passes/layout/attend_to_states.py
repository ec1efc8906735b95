"""attend-to-states: let attention over key and value states read only the rows in use, in place.

    matmul(softmax(scale * matmul(q, transpose(repeat(keys[:n]))) + mask), repeat(values[:n]))

becomes one kernel over `keys` and `values` themselves: nothing is sliced, repeated or transposed. If a model reads
whole states and masks unused rows, the rows up to the last unmasked one are read. States are found through the
transposes, reshapes, repetitions and scales in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tvm import relax, te, tirx
from tvm.ir import GenericConst, GlobalVar, IRModule
from tvm.relax import op as R
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.layout.fuse_attention import Add, AttentionMatch, AttentionMatcher, Divide, Scale, Step
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.dimension_orders import axes_of
from compiler.passes.rewriting.graph import (
    bindings_of,
    count_uses,
    kernel_attribute,
    operator_name,
    rewritable_functions,
    with_body,
)
from compiler.passes.rewriting.matching import array_of, dtype_of, is_one, plain, same_size, shape_of
from compiler.passes.rewriting.substitution import replace_leaves
from schedules.annotations import UPDATES
from schedules.attention.cache.call import AttentionOptions, cached_attention
from schedules.attention.cache.description import ATTRIBUTE, BIAS, KEY, LENGTH, QUERY, SINKS, VALUE, parse
from schedules.ir.tvm_types import Call, Expr, Function, Index, Var

_RANK = 4
_HIDDEN = -1e30  # mask values below this hide a position


@graph_pass("attend-to-states", summary="Let attention read only the rows in use of its states")
def attend_to_states(mod: IRModule, context: PipelineContext) -> IRModule:
    """Does nothing for models without states."""
    if not context.options.states:
        return mod
    rewriter = _Rewriter(mod)
    for variable, function in rewritable_functions(mod):
        rewriter.rewrite(variable, function)
    return relax.transform.DeadCodeElimination()(rewriter.builder_.get()) if rewriter.count else mod


@mutator
class _Rewriter(PyExprMutator):
    """Replaces the second matmul of attention, and calls of attention that read whole states."""

    def __init__(self, mod: IRModule) -> None:
        super().__init__(mod)
        self._mod = mod
        self.count = 0
        self._matcher = AttentionMatcher({}, {}, in_integers=False)
        self._reader = StateReader(mod, {})
        self._lengths: dict[Expr, Expr] = {}  # by mask and number of rows

    def rewrite(self, variable: GlobalVar, function: Function) -> None:
        """Rewrite one function if it contains attention over states."""
        old_count = self.count
        uses = self._look_at(function)
        unchecked = _without_checks(function, self._checks(function, uses))
        if unchecked is not function:
            function = unchecked
            self._look_at(function)
        self._lengths = {}
        updated = self.visit_expr(function)
        if self.count > old_count:
            self.builder_.update_func(variable, updated)

    def _look_at(self, function: Function) -> dict[Var, int]:
        """Prepare matching in a function; return the use counts of its variables."""
        uses: dict[Var, int] = {}
        count_uses(function.body, uses, {})
        self._matcher = AttentionMatcher(relax.analysis.get_var2val(function), uses, in_integers=False)
        self._reader = StateReader(self._mod, {each.var: each.value for each in bindings_of(function.body)})
        return uses

    def _checks(self, function: Function, uses: dict[Var, int]) -> set[Var]:
        """Return shape checks read only by attention over states; they would keep values alive that it no longer
        reads."""
        checks = {each.var for each in bindings_of(function.body) if isinstance(each, relax.MatchCast)}
        removable: set[Var] = set()
        for binding in bindings_of(function.body) if checks else ():
            match = self._matcher.match(binding.value) if operator_name(binding.value) == "relax.matmul" else None
            for operand in () if match is None else (match.key, match.value):
                read = self._reader.read(operand.expr)
                path = () if read is None else read.path
                if all(uses.get(each) == 1 for each in path):
                    removable.update(checks.intersection(path))
        return removable

    def visit_call_(self, call: Call) -> Expr:
        """Return a call or its replacement."""
        name, replacement = operator_name(call), None
        if name == "relax.matmul":
            match = self._matcher.match(call)
            replacement = None if match is None else self._attention(match)
        elif name == "relax.call_tir":
            replacement = self._shortened(call)
        return self.visit_expr_post_order(call) if replacement is None else replacement

    def _attention(self, match: AttentionMatch) -> Expr | None:
        """Return attention over states for a match, or None if it does not apply."""
        scale, masks = _scale_and_masks(match.steps)
        keys, values = self._reader.read(match.key.expr), self._reader.read(match.value.expr)
        if scale is None or keys is None or values is None or match.weights is not None or not _belong(keys, values):
            return None
        if not keys.is_ordered("batch", "heads", "size", "rows") or not values.is_ordered(
            "batch", "heads", "rows", "size"
        ):
            return None
        shape = shape_of(match.query.expr)
        if shape is None or len(shape) != _RANK or not isinstance(shape[1], int) or not isinstance(shape[3], int):
            return None
        bias = self._bias(masks)
        query = self.builder_.emit(R.permute_dims(self.visit_expr(match.query.expr), [0, 2, 1, 3]))
        options = AttentionOptions(
            causal=False,
            scale=scale * keys.factor,
            bias=bias,
            length=self._length(keys, bias),
            scales=_scales(self, keys, values),
        )
        self.count += 1
        call = cached_attention(
            self.builder_, query, self.visit_expr(keys.state), self.visit_expr(values.state), options
        )
        result = R.permute_dims(self.builder_.emit(call), [0, 2, 1, 3])
        if values.factor == 1.0:
            return result
        return R.multiply(self.builder_.emit(result), relax.const(values.factor, "float32"))

    def _shortened(self, call: Call) -> Expr | None:
        """Restrict attention over whole states, or over copies of their first rows, to the rows in use."""
        text = kernel_attribute(call, self._mod, ATTRIBUTE)
        if text is None:
            return None
        description = parse(str(text))
        parts = dict(zip(description.operands, call.args[1].fields, strict=True))
        if description.causal or LENGTH in parts or set(parts) - {QUERY, KEY, VALUE, BIAS, SINKS}:
            return None
        keys, values = self._reader.read(parts[KEY]), self._reader.read(parts[VALUE])
        if keys is None or values is None or not _belong(keys, values) or (keys.factor, values.factor) != (1.0, 1.0):
            return None
        if not (keys.is_ordered(*_ORDER) and values.is_ordered(*_ORDER)):
            return None
        query, bias, sinks = (self.visit_expr(parts[role]) if role in parts else None for role in (QUERY, BIAS, SINKS))
        length = self._length(keys, bias)
        if length is None and keys.state.same_as(parts[KEY]):
            return None
        options = AttentionOptions(
            causal=False,
            scale=description.scale,
            softcap=description.softcap,
            bias=bias,
            sinks=sinks,
            length=length,
            scales=_scales(self, keys, values),
            rounds=description.rounds,
        )
        self.count += 1
        return cached_attention(
            self.builder_, query, self.visit_expr(keys.state), self.visit_expr(values.state), options
        )

    def _bias(self, masks: Sequence[Expr]) -> Expr | None:
        """Sum masks, with rank 4."""
        total: Expr | None = None
        for each in masks:
            mask = self.visit_expr(each)
            shape = shape_of(mask) or []
            if len(shape) < _RANK:
                mask = self.builder_.emit(R.reshape(mask, [1] * (_RANK - len(shape)) + shape))
            total = mask if total is None else self.builder_.emit(R.add(total, mask))
        return total

    def _length(self, keys: StateRead, bias: Expr | None) -> Expr | None:
        """Return the number of visible rows, int64 of shape () or (batch,); None for the whole state."""
        source = bias if keys.rows is None else keys.rows
        if source is None:
            return None
        if source not in self._lengths:
            made = _shown_rows(self, source) if keys.rows is None else _number_of_rows(self, source)
            self._lengths[source] = made
        return self._lengths[source]


def _without_checks(function: Function, checks: set[Var]) -> Function:
    """Replace the results of `checks` by the checked values."""
    if not checks:
        return function
    sources: dict[Var, Expr] = {}
    blocks = []
    for block in function.body.blocks:
        bindings = []
        for binding in block.bindings:
            value = replace_leaves(binding.value, lambda leaf: sources.get(leaf, leaf))
            if binding.var in checks:
                sources[binding.var] = value
            elif isinstance(binding, relax.MatchCast):
                bindings.append(relax.MatchCast(binding.var, value, binding.ty))
            else:
                bindings.append(relax.VarBinding(binding.var, value))
        blocks.append(type(block)(bindings))
    body = relax.SeqExpr(blocks, function.body.body)
    return with_body(function, body)


_ORDER: tuple[Axis, ...] = ("batch", "heads", "rows", "size")


def _scale_and_masks(steps: Sequence[Step]) -> tuple[float | None, list[Expr]]:
    """Return the factor of the scores, and the masks added after it; None if there are other steps."""
    scale = 1.0
    masks: list[Expr] = []
    for step in steps:
        if isinstance(step, Add):
            masks.append(step.tensor)
        elif masks or not isinstance(step, Scale | Divide):
            return None, []
        else:
            scale = scale * step.factor if isinstance(step, Scale) else scale / step.divisor
    return scale, masks


def _belong(keys: StateRead, values: StateRead) -> bool:
    """True if the same rows of two states of equal type are read."""
    if (keys.rows is None) != (values.rows is None) or dtype_of(keys.state) != dtype_of(values.state):
        return False
    if keys.rows is not None and not same_size(keys.rows, values.rows):
        return False
    sizes = [shape_of(each.state) for each in (keys, values)]
    return all(shape is not None and isinstance(shape[1], int) and isinstance(shape[3], int) for shape in sizes)


def _scales(rewriter: _Rewriter, keys: StateRead, values: StateRead) -> tuple[Expr, Expr] | None:
    if keys.scales is None or values.scales is None:
        return None
    return rewriter.visit_expr(keys.scales), rewriter.visit_expr(values.scales)


def _number_of_rows(rewriter: _Rewriter, rows: Expr) -> Expr:
    call = rewriter.builder_.call_te(
        lambda number: te.compute((), lambda *_: number, name="rows"), rows, primfunc_name_hint="rows_in_use"
    )
    return rewriter.builder_.emit(call)


def _shown_rows(rewriter: _Rewriter, mask: Expr) -> Expr | None:
    """For each sample, return the rows up to the last that any query sees; all rows if a query sees none: int64
    (batch,).

    A query that sees nothing scores every row alike, so that all of them count.
    """
    builder = rewriter.builder_
    shape = shape_of(mask)
    if shape is None or len(shape) != _RANK or is_one(shape[3]):
        return None
    shown = mask if dtype_of(mask) == "bool" else builder.emit(R.greater(mask, relax.const(_HIDDEN, dtype_of(mask))))

    def ends(seen: te.Tensor) -> te.Tensor:
        def end(*indices: tirx.Expr) -> tirx.Expr:
            return tirx.Select(seen[indices], indices[3] + 1, tirx.const(0, "int64"))

        return te.compute(seen.shape, end, name="ends")

    end = builder.emit(builder.call_te(ends, shown, primfunc_name_hint="row_ends"))
    last = builder.emit(R.max(end, axis=[3]))
    whole = builder.emit(builder.call_te(lambda rows: _or_all(rows, shape[3]), last, primfunc_name_hint="rows_shown"))
    return builder.emit(R.max(whole, axis=[1, 2]))


def _or_all(rows: te.Tensor, count: tirx.Expr) -> te.Tensor:
    return te.compute(
        rows.shape, lambda *at: tirx.Select(rows[at] == 0, tirx.Cast("int64", count), rows[at]), name="rows"
    )


Axis = Literal["batch", "heads", "rows", "size", "repeated"]
_AXES: tuple[Axis, ...] = ("batch", "heads", "rows", "size")
_NARROW = ("float16", "bfloat16")
_SLICE = 3  # operands of a slice: axes, begin, end
_ROWS = 2  # row axis of a state (batch, heads, rows, size)


@dataclass(frozen=True)
class StateRead:
    """The part of a state (batch, heads, rows, size) that an expression holds.

    Attributes:
        state: the state after its rows were written.
        rows: the number of leading rows; None for all.
        factor: the factor of each element.
        scales: float32 (batch, heads, rows), for int8 states; otherwise None.
        axes: for each axis of the expression, the state axes that make it up, without those of size 1.
        path: the variables between the state and the expression.
    """

    state: Expr
    rows: Expr | None
    factor: float
    scales: Expr | None
    axes: tuple[tuple[Axis, ...], ...]
    path: tuple[Var, ...] = ()

    def is_ordered(self, *order: Axis) -> bool:
        """True if its axes are the state's in this order, heads optionally each repeated."""
        expected = [[axis, "repeated"] if axis == "heads" else [axis] for axis in order]
        return len(self.axes) == len(expected) and all(
            [axis for axis in names if axis in axis_group] == list(axis_group)
            for axis_group, names in zip(self.axes, expected, strict=True)
        )


@dataclass
class _Path:
    """Operations between a state and the expression that reads it, last first."""

    shapes: list[Call] = field(default_factory=list)
    factor: float = 1.0
    scales: Expr | None = None


class StateReader:
    """Finds the parts of states that a function's expressions read, by the definitions of its variables."""

    def __init__(self, mod: IRModule, definitions: Mapping[Var, Expr]) -> None:
        self._mod, self._definitions = mod, definitions

    def read(self, expr: Expr) -> StateRead | None:
        """Return the part that an expression holds of a state written in this run; None if it holds something else."""
        path = _Path()
        variables = []
        while not self._is_state(expr):
            variables.append(expr)
            value = self._definitions.get(expr)
            source = None if value is None else self._before(value, path)
            if source is None:
                return None
            expr = source
        rows, shapes = None, list(reversed(path.shapes))
        if shapes and operator_name(shapes[0]) == "relax.strided_slice":
            rows = shapes.pop(0).ty.shape.values[_ROWS]
        sizes = shape_of(expr)
        if sizes is None or len(sizes) != len(_AXES):
            return None
        if rows is not None:
            sizes[_ROWS] = plain(rows)
        axes = _axes(shapes, sizes)
        return None if axes is None else StateRead(expr, rows, path.factor, path.scales, axes, tuple(variables))

    def _is_state(self, expr: Expr) -> bool:
        """True for the result of a kernel that writes rows."""
        call = self._definitions.get(expr)
        if call is None or operator_name(call) != "relax.call_tir" or not isinstance(call.args[0], GlobalVar):
            return False
        return UPDATES in (self._mod[call.args[0]].attrs or {})

    def _before(self, value: Expr, path: _Path) -> Expr | None:
        """Return the operand that a value is computed from, adding its operation to the path."""
        name = operator_name(value)
        if isinstance(value, relax.Var):
            return value
        if name in ("relax.reshape", "relax.permute_dims", "relax.broadcast_to", "relax.expand_dims"):
            path.shapes.append(value)
            return value.args[0]
        if name == "relax.strided_slice" and self._is_state(value.args[0]) and _is_first_rows(value):
            path.shapes.append(value)
            return value.args[0]
        if name == "relax.astype" and dtype_of(value) == "float32" and dtype_of(value.args[0]) in _NARROW:
            return value.args[0]
        if name == "relax.multiply":
            return self._before_product(value, path)
        return None

    def _before_product(self, value: Call, path: _Path) -> Expr | None:
        for inner, operand in (value.args[:], reversed(value.args[:])):
            number = _number(operand)
            if number is not None:
                path.factor *= number
                return inner
        return self._bytes(value, path)

    def _bytes(self, value: Call, path: _Path) -> Expr | None:
        """Return the int8 state whose rows are multiplied by their scales."""
        cast, scales = (self._definitions.get(each) for each in value.args)
        if cast is None or scales is None:
            return None
        if operator_name(cast) != "relax.astype" or operator_name(scales) != "relax.expand_dims":
            return None
        if not self._is_state(cast.args[0]) or not self._is_state(scales.args[0]) or path.scales is not None:
            return None
        if dtype_of(cast.args[0]) != "int8":
            return None
        path.scales = scales.args[0]
        return cast.args[0]


def _is_first_rows(call: Call) -> bool:
    """True if a slice of a state takes its first rows."""
    arguments = [_elements(each) for each in call.args[1:]]
    if len(arguments) < _SLICE or any(each is None for each in arguments):
        return False
    axes, begin, _, *strides = (each for each in arguments if each is not None)
    by_one = all(_is(step, 1) for each in strides for step in each)
    return len(axes) == 1 and _is(axes[0], _ROWS) and _is(begin[0], 0) and by_one


def _elements(expr: Expr) -> list[Expr] | None:
    return list(expr.fields) if isinstance(expr, relax.Tuple) else None


def _is(expr: Expr, number: int) -> bool:
    value = getattr(expr, "value", expr)
    return isinstance(value, int | tirx.IntImm) and int(value) == number


def _number(expr: Expr) -> float | None:
    """Return the value of a one-element float32 constant."""
    if not isinstance(expr, GenericConst) or dtype_of(expr) != "float32":
        return None
    array = array_of(expr)
    return float(array.reshape(())) if array.size == 1 else None


Atoms = list[tuple[Axis, "Index"]]


def _axes(shapes: list[Call], sizes: list[Index]) -> tuple[tuple[Axis, ...], ...] | None:
    """Map each axis of the calls' result to the state axes it came from."""
    groups: list[Atoms] = [[] if is_one(size) else [(axis, size)] for axis, size in zip(_AXES, sizes, strict=True)]
    for call in shapes:
        name, shape = operator_name(call), shape_of(call)
        regrouped: list[Atoms] | None
        if name == "relax.permute_dims":
            axes = axes_of(call)
            regrouped = None if axes is None else [groups[axis] for axis in axes]
        elif shape is None:
            regrouped = None
        elif name == "relax.broadcast_to":
            regrouped = _repeated(groups, shape)
        else:
            regrouped = _regrouped([atom for group in groups for atom in group], shape)
        if regrouped is None:
            return None
        groups = regrouped
    return tuple(tuple(axis for axis, _ in group) for group in groups)


def _repeated(groups: list[Atoms], shape: list[Index]) -> list[Atoms] | None:
    if len(groups) != len(shape):
        return None
    return [group or ([] if is_one(size) else [("repeated", size)]) for group, size in zip(groups, shape, strict=True)]


def _regrouped(atoms: Atoms, shape: list[Index]) -> list[Atoms] | None:
    """Regroup the atoms into axes of other sizes; None if an axis is not made of whole atoms.

    One axis may have a size not provably equal to its atoms': it gets the remaining ones.
    """
    front, remaining = _taken(atoms, shape)
    if len(front) == len(shape):
        return None if remaining else front
    back, remaining = _taken(remaining[::-1], shape[: len(front) : -1])
    if len(front) + 1 + len(back) < len(shape):
        return None
    return [*front, remaining[::-1], *(group[::-1] for group in reversed(back))]


def _taken(atoms: Atoms, shape: list[Index]) -> tuple[list[Atoms], Atoms]:
    """Assign the next atoms to the leading axes as far as sizes match; return them and the remaining atoms."""
    groups: list[Atoms] = []
    remaining = list(atoms)
    for size in shape:
        product: Index = 1
        count = 0
        while not same_size(product, size) and count < len(remaining):
            product = product * remaining[count][1]
            count += 1
        if not same_size(product, size):
            break
        groups.append(remaining[:count])
        remaining = remaining[count:]
    return groups, remaining
