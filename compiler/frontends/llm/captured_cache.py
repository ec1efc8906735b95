"""Stores caches of captured models in another dtype: rows are rounded when written, and converted back when read.

torch captures a model with float32 caches. `attend-to-states` later finds attention through the conversions, and
reads the rows as stored.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import relax
from tvm.ir import GlobalVar, IRModule
from tvm.relax import op as R

from compiler.errors import InternalError, OptionError
from compiler.frontends.imported_model import ImportedModel, StateSpec, TensorSpec, with_rewritten_main
from compiler.passes.rewriting.graph import bindings_of, operator_name
from compiler.passes.rewriting.matching import dtype_of, rank_of, same_shape, shape_of
from compiler.passes.rewriting.state_writes import write_positions
from compiler.passes.rewriting.substitution import replace_leaves
from schedules.annotations import UPDATES
from schedules.ir.tvm_types import Binding, BlockBuilder, Call, Expr, Function, Var

_ROWS, _RANK = 2, 4  # the row axis and the rank of a cache (batch, heads, rows, size)
_MAX_INT8 = 127.0  # largest int8


def with_cache_type(model: ImportedModel, dtype: str) -> ImportedModel:
    """Convert the states of a captured model, keys and values (batch, heads, rows, size), to another type.

    Args:
        dtype: "float32", "float16", "bfloat16", or "int8" with a scale for each head and row, an additional state.

    Raises OptionError if a state is not written row by row.
    """
    return model if dtype == "float32" else _Caches(model, dtype).model()


class _Caches:
    """Rewrites one model's caches."""

    def __init__(self, model: ImportedModel, dtype: str) -> None:
        self._model, self._dtype = model, dtype
        self._main = relax.transform.ToNonDataflow()(model.mod)["main"]
        names = [spec.name for spec in model.inputs]
        self._inputs = {state.input: names.index(state.input) for state in model.states}
        self._values = {each.var: each.value for each in bindings_of(self._main.body)}
        self._params = {state.input: self._cache(state) for state in model.states}
        self._scales = {state.input: self._scale(state) for state in model.states if dtype == "int8"}
        self._stored: dict[Expr, Expr] = {}  # by their float32 value in the model
        self._stored_scales: dict[Expr, Expr] = {}
        self._widened: dict[Expr, Expr] = {}

    def model(self) -> ImportedModel:
        """Return the model with caches of the other type."""
        model, caches = self._model, {name for state in self._model.states for name in (state.input, state.output)}
        specs = [
            [replace(spec, dtype=self._dtype) if spec.name in caches else spec for spec in specs_of_model]
            for specs_of_model in (model.inputs, model.outputs)
        ]
        states = list(model.states)
        for state in model.states if self._scales else ():
            shape = next(spec.shape for spec in model.inputs if spec.name == state.input)[:-1]
            names = f"{state.input}_scale", f"{state.output}_scale"
            states.append(StateSpec(names[0], *names, axis=_ROWS))
            for specs_of_model, name in zip(specs, names, strict=True):
                specs_of_model.append(TensorSpec(name, shape, "float32"))
        return replace(model, mod=self._module(), inputs=specs[0], outputs=specs[1], states=tuple(states))

    def _cache(self, state: StateSpec) -> Var:
        param = self._main.params[self._inputs[state.input]]
        if (
            rank_of(param) != _RANK
            or dtype_of(param) != "float32"
            or (state.initial is not None and state.initial.any())
        ):
            raise self._unfit(state.name)
        return relax.Var(param.name, relax.TensorType(param.ty.shape, self._dtype))

    def _scale(self, state: StateSpec) -> Var:
        param = self._main.params[self._inputs[state.input]]
        return relax.Var(f"{param.name}_scale", relax.TensorType(list(param.ty.shape.values)[:-1], "float32"))

    def _unfit(self, name: str) -> OptionError:
        return OptionError(
            f"`cache` does not apply: state {name!r} is not keys or values that are written row by row", "leave it out"
        )

    def _module(self) -> IRModule:
        return with_rewritten_main(self._model.mod, self._function, f"the module with caches of {self._dtype}")

    def _function(self, builder: BlockBuilder) -> Function:
        old = list(self._main.params)
        for name, at in self._inputs.items():
            self._stored[old[at]] = self._params[name]
            if name in self._scales:
                self._stored_scales[old[at]] = self._scales[name]
        params = [*(self._stored.get(each, each) for each in old), *self._scales.values()]
        builder.begin_scope(params)
        builder._begin_binding_block()
        for block in self._main.body.blocks:
            for binding in block.bindings:
                self._rebind(builder, binding)
        results = self._results(builder)
        block = builder._end_block()
        builder.end_scope()
        result = relax.Var("results", relax.TupleType([each.ty for each in results]))
        body = relax.SeqExpr(
            [relax.BindingBlock([*block.bindings, relax.VarBinding(result, relax.Tuple(results))])], result
        )
        function = relax.Function(params, builder.normalize(body), is_pure=True)
        return function.with_attr(dict(self._main.attrs or {}))

    def _rebind(self, builder: BlockBuilder, binding: Binding) -> None:
        value = binding.value
        if isinstance(binding, relax.VarBinding) and self._is_write(value):
            self._write(builder, binding.var, value)
            return
        if isinstance(binding, relax.VarBinding) and isinstance(value, relax.Tuple):
            return  # the results
        value = builder.normalize(replace_leaves(value, lambda leaf: self._read(builder, leaf)))
        if isinstance(binding, relax.MatchCast):
            builder.emit_normalized(relax.MatchCast(binding.var, value, binding.ty))
        else:
            builder.emit_normalized(relax.VarBinding(binding.var, value))

    def _is_write(self, value: Expr) -> bool:
        """True for a call that writes rows to a cache."""
        if operator_name(value) != "relax.call_tir" or not isinstance(value.args[0], GlobalVar):
            return False
        return UPDATES in (self._model.mod[value.args[0]].attrs or {}) and value.args[1].fields[0] in self._stored

    def _write(self, builder: BlockBuilder, var: Var, call: Call) -> None:
        old, rows, *positions = call.args[1].fields
        shape, row_shape = shape_of(old), shape_of(rows)
        count = None if row_shape is None or len(row_shape) != _RANK else row_shape[_ROWS]
        if shape is None or row_shape is None or len(positions) != 1 or not same_shape(shape_of(positions[0]), [count]):
            raise self._unfit(str(old.name))
        if not same_shape(shape[:_ROWS] + shape[_ROWS + 1 :], row_shape[:_ROWS] + row_shape[_ROWS + 1 :]):
            raise self._unfit(str(old.name))
        rows, position = self._read(builder, rows), self._read(builder, positions[0])
        if self._dtype == "int8":
            rounded, scales = _rounded(builder, rows)
            self._stored[var] = write_positions(builder, self._stored[old], rounded, position, _ROWS)
            self._stored_scales[var] = write_positions(builder, self._stored_scales[old], scales, position, _ROWS)
        else:
            narrow = builder.emit(R.astype(rows, self._dtype))
            self._stored[var] = write_positions(builder, self._stored[old], narrow, position, _ROWS)

    def _read(self, builder: BlockBuilder, leaf: Expr) -> Expr:
        """Return a cache in float32; other values unchanged."""
        if leaf not in self._stored:
            return leaf
        if leaf not in self._widened:
            wide = builder.emit(R.astype(self._stored[leaf], "float32"))
            if leaf in self._stored_scales:
                scales = builder.emit(R.expand_dims(self._stored_scales[leaf], 3))
                wide = builder.emit(R.multiply(wide, scales))
            self._widened[leaf] = wide
        return self._widened[leaf]

    def _results(self, builder: BlockBuilder) -> list[Expr]:
        value = self._main.body.body
        while value in self._values:
            value = self._values[value]
        if not isinstance(value, relax.Tuple):
            raise InternalError("main does not return a tuple of its results")
        outputs = {state.output for state in self._model.states}
        results, scales = [], []
        for spec, field in zip(self._model.outputs, value.fields, strict=True):
            if spec.name not in outputs:
                results.append(replace_leaves(field, lambda leaf: self._read(builder, leaf)))
                continue
            if field not in self._stored:
                raise self._unfit(spec.name)
            results.append(self._stored[field])
            scales += [self._stored_scales[field]] if field in self._stored_scales else []
        return [*results, *scales]


def _rounded(builder: BlockBuilder, rows: Expr) -> tuple[Expr, Expr]:
    """Return rows (batch, heads, n, size) as int8, and their scales: float32 (batch, heads, n)."""

    def emit(value: Expr) -> Expr:
        return builder.emit(value)

    def number(value: float) -> Expr:
        return relax.const(value, "float32")

    peaks = emit(R.max(emit(R.abs(rows)), axis=[3]))
    scales = emit(R.multiply(peaks, number(1 / _MAX_INT8)))
    inverse = emit(R.divide(number(1.0), scales))
    inverse = emit(R.where(emit(R.greater(scales, number(0.0))), inverse, number(0.0)))
    scaled = emit(R.multiply(rows, emit(R.expand_dims(inverse, 3))))
    return emit(R.astype(emit(R.astype(emit(R.round(scaled)), "int32")), "int8")), scales
