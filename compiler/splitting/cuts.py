"""Cuts of a model: positions in the order of its operators, the tensors that cross each, and the two halves as models.

Encoding of floats on the wire: unchanged, in half precision, or as 8-bit integers with a calibrated scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.analysis import free_vars

from compiler.errors import OptionError
from compiler.frontends.imported_model import ImportedModel, TensorSpec
from compiler.passes.rewriting.graph import remove_unused
from schedules.ir.tvm_types import Binding, BindingBlock, Expr
from schedules.machine import dtype_bits

Var = Any


@dataclass(frozen=True)
class Crossing:
    """A tensor that is sent over the wire.

    Attributes:
        name: name of the model's node that computes it, or of the model's input.
        variable: its variable in `main`.
        shape, dtype: symbolic dimensions by name.
    """

    name: str
    variable: Var
    shape: tuple[int | str, ...]
    dtype: str

    def elements(self, size: int = 1) -> int:
        """Number of elements, with `size` for symbolic dimensions."""
        count = 1
        for each in self.shape:
            count *= each if isinstance(each, int) else size
        return count

    def nbytes(self, wire: Wire, size: int = 1) -> int:
        """Bytes on the wire."""
        return self.elements(size) * dtype_bits(wire_dtype(self.dtype, wire.kind)) // 8


@dataclass(frozen=True)
class Cut:
    """A position where the model can be cut.

    Attributes:
        position: number of bindings of `main` that the client computes; 0: none, the inputs are sent.
        after: the node before the cut; "the inputs" for position 0.
        crossing: tensors that the server needs from the client.
    """

    position: int
    after: str
    crossing: tuple[Crossing, ...]

    def nbytes(self, wire: Wire, size: int = 1) -> int:
        """Bytes on the wire."""
        return sum(each.nbytes(wire, size) for each in self.crossing)


def find_cuts(model: ImportedModel) -> list[Cut]:
    """All positions where only tensors cross whose dimensions are numbers or symbols. Raises OptionError if the model
    keeps states, or its body is not a list of bindings. `model`: in canonical form."""
    if model.states:
        raise OptionError("a model that keeps states cannot be split", "its states belong to one machine")
    main = model.mod["main"]
    bindings = [binding for _, binding in _flat(main)]
    last_use = _last_uses(main, bindings)
    names = {parameter: spec.name for parameter, spec in zip(main.params, model.inputs, strict=True)}
    used_names = set(names.values())
    defined: list[Var] = list(main.params)
    cuts = []
    for position in range(len(bindings)):
        crossing = [variable for variable in defined if last_use.get(variable, -1) >= position]
        candidates = [_crossing(variable, names, model, used_names) for variable in crossing]
        crossings = [each for each in candidates if each is not None]
        if crossings and len(crossings) == len(candidates):
            after = "the inputs" if position == 0 else _node_name(bindings[position - 1].var, model)
            cuts.append(Cut(position, after, tuple(crossings)))
        defined.append(bindings[position].var)
    return cuts


def halves(model: ImportedModel, cut: Cut, wires: Sequence[Wire]) -> tuple[ImportedModel, ImportedModel]:
    """The client's and the server's half; the client's outputs are the server's inputs, in their wire types. Raises
    OptionError if a half would need a size that is not sent. `wires`: wire type of each tensor in `cut.crossing`."""
    front, back = _front(model, cut, wires), _back(model, cut, wires)
    for half in (front, back):
        try:
            relax.analysis.well_formed(half.mod)
        except Exception as error:
            raise OptionError(
                f"the model cannot be cut after {cut.after!r}: {str(error).splitlines()[0]}", "cut at another place"
            ) from error
    return front, back


def _front(model: ImportedModel, cut: Cut, wires: Sequence[Wire]) -> ImportedModel:
    main = model.mod["main"]
    builder = Emitter()
    sent = [encoded(each.variable, each.dtype, wire, builder) for each, wire in zip(cut.crossing, wires, strict=True)]
    result = relax.Var("sent", relax.TupleType([each.ty for each in sent]))
    bindings = [*builder.bindings, relax.VarBinding(result, relax.Tuple(sent))]
    blocks = _blocks(main, 0, cut.position)
    if blocks and isinstance(blocks[-1], relax.DataflowBlock):
        bindings = [*blocks.pop().bindings, *bindings]  # the variables of such a block are only defined inside it
    read = {variable for _, binding in _flat(main)[: cut.position] for variable in free_vars(binding.value)}
    read |= {each.variable for each in cut.crossing}
    pairs = [pair for pair in zip(main.params, model.inputs, strict=True) if pair[0] in read]
    outputs = [
        TensorSpec(each.name, each.shape, wire_dtype(each.dtype, wire.kind))
        for each, wire in zip(cut.crossing, wires, strict=True)
    ]
    names = {spec.name for _, spec in pairs}
    return replace(
        _plain(model),
        mod=_module(model, [each for each, _ in pairs], [*blocks, relax.DataflowBlock(bindings)], result),
        inputs=[spec for _, spec in pairs],
        outputs=outputs,
        indices=tuple(each for each in model.indices if each.input in names),
        assets=model.assets,
    )


def _back(model: ImportedModel, cut: Cut, wires: Sequence[Wire]) -> ImportedModel:
    main = model.mod["main"]
    builder = Emitter()
    parameters, specs = [], []
    for crossing, wire in zip(cut.crossing, wires, strict=True):
        dtype = wire_dtype(crossing.dtype, wire.kind)
        parameter = relax.Var(f"{crossing.variable.name}_received", relax.TensorType(crossing.variable.ty.shape, dtype))
        parameters.append(parameter)
        specs.append(TensorSpec(crossing.name, crossing.shape, dtype))
        value = decoded(parameter, crossing.dtype, wire, builder)
        builder.bindings.append(relax.VarBinding(crossing.variable, value))
    rest = _blocks(main, cut.position, None)
    if isinstance(rest[0], relax.DataflowBlock):
        rest[0] = relax.DataflowBlock([*builder.bindings, *rest[0].bindings])
    else:
        rest.insert(0, relax.DataflowBlock(builder.bindings))
    mod = _module(model, parameters, rest, main.body.body)
    return replace(_plain(model), mod=mod, inputs=specs, outputs=list(model.outputs))


class Emitter:
    """Bindings under construction."""

    def __init__(self) -> None:
        self.bindings: list[Any] = []
        self._builder = relax.BlockBuilder()

    def emit(self, call: object, name: str) -> Var:
        """Bind a call to a new variable of its type."""
        normalized = self._builder.normalize(call)
        variable = relax.DataflowVar(name, normalized.ty)
        self.bindings.append(relax.VarBinding(variable, normalized))
        return variable


def _module(model: ImportedModel, parameters: Sequence[Var], blocks: Sequence[Any], result: Any) -> tvm.IRModule:
    body = relax.SeqExpr([block for block in blocks if block.bindings], result)
    function = relax.Function(list(parameters), body, result.ty, attrs=model.mod["main"].attrs)
    mod = model.mod.clone()
    mod.update_func(mod.get_global_var("main"), relax.utils.copy_with_new_vars(function))
    return remove_unused(relax.transform.CanonicalizeBindings()(relax.transform.Normalize()(mod)))


def _flat(main: Expr) -> list[tuple[BindingBlock, Binding]]:
    return [(block, binding) for block in main.body.blocks for binding in block.bindings]


def _blocks(main: Any, start: int, stop: int | None) -> list[Any]:
    """The blocks with the bindings from `start` to `stop`."""
    blocks, position = [], 0
    for block in main.body.blocks:
        count = len(block.bindings)
        low = max(start - position, 0)
        high = count if stop is None else min(max(stop - position, 0), count)
        if low < high:
            blocks.append(type(block)(list(block.bindings)[low:high]))
        position += count
    return blocks


def _last_uses(main: Expr, bindings: Sequence[Binding]) -> dict[Var, int]:
    """The position of the last binding that reads a variable; the number of bindings if the result does."""
    last_use: dict[Var, int] = {}
    for position, binding in enumerate(bindings):
        for variable in free_vars(binding.value):
            last_use[variable] = position
    for variable in free_vars(main.body.body):
        last_use[variable] = len(bindings)
    return last_use


def _crossing(variable: Var, names: dict[Var, str], model: ImportedModel, used_names: set[str]) -> Crossing | None:
    kind = variable.ty
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        return None
    shape: list[int | str] = []
    for size in kind.shape:
        if isinstance(size, tvm.tirx.IntImm):
            shape.append(int(size))
        elif isinstance(size, tvm.ir.Var):
            shape.append(str(size.name))
        else:
            return None
    if variable not in names:
        name = _node_name(variable, model)
        while name in used_names:
            name += "_"
        used_names.add(name)
        names[variable] = name
    return Crossing(names[variable], variable, tuple(shape), str(kind.dtype))


def _node_name(variable: Var, model: ImportedModel) -> str:
    nodes = model.nodes.get(str(variable.name), ())
    return nodes[0].name if nodes else str(variable.name)


def _plain(model: ImportedModel) -> ImportedModel:
    """The model without attributes that only apply to the whole model."""
    fields = {name: getattr(model, name) for name in ImportedModel.__dataclass_fields__}
    fields |= {"requirements": (), "indices": (), "states": (), "position": None, "assets": {}, "notes": ()}
    return ImportedModel(**fields)


Array = np.ndarray
KINDS = ("float32", "float16", "int8")
_HALF = 65504.0


@dataclass(frozen=True)
class Wire:
    """The type of a tensor on the wire.

    Attributes:
        kind: one of `KINDS`; tensors other than float32 are sent unchanged.
        scale, zero_point: for int8: value = (integer - zero_point) * scale.
    """

    kind: str = "float32"
    scale: float = 1.0
    zero_point: int = 0

    def through(self, array: Array) -> Array:
        """The array as received: the same arithmetic as in both halves."""
        if array.dtype != np.float32 or self.kind == "float32":
            return array
        if self.kind == "float16":
            return np.clip(array, -_HALF, _HALF).astype(np.float16).astype(np.float32)
        integers = np.clip(np.rint(array * np.float32(1 / self.scale)) + self.zero_point, -128, 127)
        return ((integers - self.zero_point) * np.float32(self.scale)).astype(np.float32)


def wire_dtype(dtype: str, kind: str) -> str:
    """The element type on the wire for a tensor of `dtype`."""
    return kind if dtype == "float32" else dtype


def calibrated(kind: str, arrays: list[Array]) -> Wire:
    """A wire type for values like these. Raises OptionError for a type not in `KINDS`."""
    if kind not in KINDS:
        raise OptionError(f"unknown wire type {kind!r}", f"known: {', '.join(KINDS)}")
    if kind != "int8" or arrays[0].dtype != np.float32:
        return Wire(kind)
    finite = [array[np.isfinite(array)] for array in arrays]
    low = min(min((float(array.min()) for array in finite if array.size), default=0.0), 0.0)
    high = max(max((float(array.max()) for array in finite if array.size), default=0.0), 0.0)
    scale = float(np.float32((high - low) / 255)) or 1.0
    return Wire(kind, scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def encoded(value: Any, dtype: str, wire: Wire, builder: Any) -> Any:
    """Relax calls that encode a value for the wire."""
    if dtype != "float32" or wire.kind == "float32":
        return value
    if wire.kind == "float16":
        clipped = builder.emit(relax.op.clip(value, -_HALF, _HALF), "clipped")
        return builder.emit(relax.op.astype(clipped, "float16"), "half")
    scaled = builder.emit(relax.op.multiply(value, _number(1 / wire.scale)), "scaled")
    rounded = builder.emit(relax.op.round(scaled), "rounded")
    moved = builder.emit(relax.op.add(rounded, _number(wire.zero_point)), "moved")
    clipped = builder.emit(relax.op.clip(moved, -128, 127), "clipped")
    return builder.emit(relax.op.astype(clipped, "int8"), "integers")


def decoded(value: Any, dtype: str, wire: Wire, builder: Any) -> Any:
    """Relax calls that decode a value from the wire."""
    if dtype != "float32" or wire.kind == "float32":
        return value
    widened = builder.emit(relax.op.astype(value, "float32"), "widened")
    if wire.kind == "float16":
        return widened
    moved = builder.emit(relax.op.subtract(widened, _number(wire.zero_point)), "moved")
    return builder.emit(relax.op.multiply(moved, _number(wire.scale)), "values")


def _number(value: float) -> Any:
    return relax.const(np.float32(value), "float32")
