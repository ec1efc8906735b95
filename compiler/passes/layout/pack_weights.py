"""pack-matmul-weights, pack-grouped-weights, pack-sparse-weights: store constant matmul weights as inner loops read
them.

Weights are stored in panels, or unpacked at 4 or 8 bits with one scale per group; zeros are skipped, by whole blocks or
as N:M sparsity, when that is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst, IRModule
from tvm.relax.expr_functor import PyExprMutator, mutator

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.expansion import exact_half
from compiler.passes.rewriting.graph import operator_name
from compiler.passes.rewriting.grouped_weights import GroupedWeight, grouped_weight
from compiler.passes.rewriting.matching import Array, array_of, as_constant, dtype_of, rank_of, shape_of
from schedules.annotations import FUSABLE
from schedules.instructions.dot_products.operation import DOT_F16, HALVES, Operation
from schedules.instructions.dot_products.table import halves_pay, operation_of, tile_instruction
from schedules.instructions.rounding import stored_halves
from schedules.ir.tvm_types import Call, Expr, Var
from schedules.machine import Machine
from schedules.matmul import grouped
from schedules.matmul.packed_operand import pack_panels, pack_words, packed_matmul
from schedules.matmul.sparse import SparseForm, matmul_n_of_m, matmul_sparse, pack_blocks, pack_groups_of, sparse_form
from schedules.matmul.tiling import panel_width
from schedules.matmul.words import MATRICES, matmul_matrix, matmul_words

# With more rows, converting weights costs more than reading them.
_FEW_ROWS = 4
# Types of data, weights and result.
_DTYPES = (
    ("float32", "float32", "float32"),
    ("uint8", "int8", "int32"),
    ("int8", "int8", "int32"),
    ("float32", "int8", "float32"),
)

_OF_FLOAT16 = (("float16", "float16", "float16"), ("float16", "float16", "float32"))


@graph_pass(
    "pack-matmul-weights", summary="Store constant weights of matmuls in panels for the inner loop", only="processor"
)
def pack_matmul_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """Rewrites `matmul(x, constant)` with a 2-D float32 constant, or an int8 one if x is 8-bit and the result int32.
    Does nothing without a machine to pack for.

    Weights that float16 represents exactly are stored in it if there are few rows. With "precision" set to "bf16" or
    "float16", weights and data are rounded to that if the machine multiplies it faster.
    """
    if context.machine is None:
        return mod
    halves = HALVES.get(context.options.precision)
    pays = halves is not None and halves_pay(context.machine, halves)
    return pack_all(_Packer(mod, context.machine, halves if pays else None), mod)


@mutator
class _Packer(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine, halves: Operation | None) -> None:
        super().__init__(mod)
        self.halves = halves
        self.machine = machine
        self.count = 0
        self._packed: dict[tuple[Any, ...], Any] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if not isinstance(call, relax.Call) or getattr(call.op, "name", "") != "relax.matmul":
            return call
        data, weight = call.args
        width = self._width(data, weight, call)
        if not width:
            return call
        self.count += 1
        columns = int(weight.ty.shape.values[1])
        if str(call.ty.dtype) == "int32":
            return self._integers(data, weight, width, columns)
        if str(data.ty.dtype) == "float16":
            data = self.builder_.emit(relax.op.astype(data, "float32"))
        product = self.builder_.call_te(
            partial(matmul_words, operation=self.halves) if self.halves is not None else packed_matmul,
            data,
            self._panels(weight, width, few=self._few_rows(data)),
            columns,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
        if str(call.ty.dtype) != "float16":
            return product
        return self.builder_.normalize(relax.op.astype(self.builder_.emit(product), "float16"))

    def _integers(self, data: Expr, weight: Expr, width: int, columns: int) -> Expr:
        key, dtype = (weight, width), str(data.ty.dtype)
        operation = operation_of(self.machine, dtype, "int8")
        if key not in self._packed:
            self._packed[key] = as_constant(self._words(array_of(weight), width, operation))
        product = self.builder_.call_te(
            matmul_matrix if operation in MATRICES else partial(matmul_words, operation=operation),
            data,
            self._packed[key],
            columns,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )
        shift = operation.shift(dtype)
        if not shift:
            return product
        sums = array_of(weight).astype(np.int32).sum(axis=0, dtype=np.int32)
        return self.builder_.normalize(relax.op.add(self.builder_.emit(product), as_constant(sums * -shift)))

    def _words(self, values: Array, width: int, operation: Operation) -> Array:
        """Pack a weight for the machine's dot products of an operation, which all read the same form."""
        tiles = tile_instruction(self.machine, operation)
        return pack_words(values, width, operation.group, tiles.depth if tiles is not None else 0)

    def _width(self, data: Expr, weight: Expr, call: Call) -> int:
        """Return the columns of a panel, 0 to leave the call unchanged."""
        if not isinstance(weight, GenericConst) or weight.ty.ndim != 2:
            return 0
        types = tuple(str(each.ty.dtype) for each in (data, weight, call))
        if types not in (_DTYPES if self.halves is not DOT_F16 else (*_DTYPES, *_OF_FLOAT16)):
            return 0
        shape = shape_of(data)
        depth, columns = (int(size) for size in weight.ty.shape.values)
        if shape is None or len(shape) < 2 or 0 in shape or not depth or columns < self.machine.lanes("float32"):
            return 0
        return panel_width(columns, self.machine)

    def _few_rows(self, data: Expr) -> bool:
        """True if reading the weights takes longer than multiplying by them, and the machine converts float16."""
        shape = shape_of(data) or [None]
        known = all(isinstance(size, int) for size in shape)
        loads_half = self.machine.has("f16c") or self.machine.architecture == "aarch64"
        return loads_half and known and int(np.prod(shape[:-1])) <= _FEW_ROWS

    def _panels(self, weight: Expr, width: int, *, few: bool) -> Expr:
        key = (weight, width, few)
        if key not in self._packed:
            values = array_of(weight)
            half = exact_half(values) if few and self.halves is None else None
            read = half if half is not None and half.dtype == np.float16 else values
            self._packed[key] = as_constant(
                pack_panels(read, width)
                if self.halves is None
                else self._words(stored_halves(values, self.halves), width, self.halves)
            )
        return self._packed[key]


def pack_all(packer: Any, mod: IRModule) -> IRModule:
    """Rewrite every function but kernels with `packer`, a mutator whose `count` counts packed weights; return `mod`
    itself if there are none."""
    for variable, function in mod.functions_items():
        if not isinstance(function, relax.Function) or (function.attrs and "Primitive" in function.attrs):
            continue
        old_count = packer.count
        updated = packer.visit_expr(function)
        if packer.count > old_count:
            packer.builder_.update_func(variable, updated)
    return packer.builder_.get() if packer.count else mod


@graph_pass(
    "pack-grouped-weights",
    summary="Multiply by 4-bit or 8-bit weights with one scale per group without expanding them",
    only="processor",
)
def pack_grouped_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """matmul(x, a weight as in `grouped_weights`) => one kernel; does nothing without a machine to pack for."""
    if context.machine is None:
        return mod
    return pack_all(_GroupedPacker(mod, context.machine), mod)


@mutator
class _GroupedPacker(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine
        self.count = 0
        self._packed: dict[Var, tuple[GroupedWeight, list[Expr]]] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.matmul" or dtype_of(call) != "float32" or not self._serves(call.args[0]):
            return call
        packed = self._weight(call.args[1])
        if packed is None:
            return call
        weight, operands = packed
        self.count += 1
        return self.builder_.call_te(
            grouped.matmul_grouped,
            call.args[0],
            *operands,
            columns=weight.values.shape[1],
            group=weight.group,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )

    def _serves(self, data: Expr) -> bool:
        shape = shape_of(data)
        return dtype_of(data) == "float32" and (rank_of(data) or 0) >= 2 and shape is not None and 0 not in shape

    def _weight(self, expr: Expr) -> tuple[GroupedWeight, list[Expr]] | None:
        """Return the weight and the constants of the kernel; each weight is packed once."""
        if expr not in self._packed:
            weight = grouped_weight(expr, self._define)
            if weight is None or not _pays_off(weight):
                return None
            width = grouped.panel_width(weight.values.shape[1], self.machine)
            arrays: list[Array] = [
                (grouped.pack_words if weight.bits == 4 else pack_panels)(weight.values, width),
                *(pack_panels(each, width) for each in (weight.scales, weight.zeros) if each is not None),
            ]
            self._packed[expr] = weight, [as_constant(each) for each in arrays]
        return self._packed[expr]

    def _define(self, expr: Expr) -> Expr:
        bound = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return expr if bound is None else bound


def _pays_off(weight: GroupedWeight) -> bool:
    """True if groups are whole words; 8-bit weights with one scale per column are left to `keep-weights-narrow`."""
    plain = weight.bits == 8 and len(weight.scales) == 1 and weight.zeros is None
    return weight.group % grouped.PER_WORD == 0 and not plain


Kernel = Callable[..., Any]


@graph_pass("pack-sparse-weights", summary="Skip zero weights, in blocks or N:M, if faster", only="processor")
def pack_sparse_weights(mod: IRModule, context: PipelineContext) -> IRModule:
    """matmul(x, a 2-D float32 constant with zeros in the right positions) => a sparse matmul of the nonzeros.

    Does nothing without a machine to pack for, or if weights are rounded to bfloat16, whose dense matmuls are faster
    still. Convolution weights are packed by layout planning.
    """
    if context.machine is None or context.options.precision != "float32":
        return mod
    return pack_all(_SparsePacker(mod, context.machine), mod)


@mutator
class _SparsePacker(PyExprMutator):
    def __init__(self, mod: IRModule, machine: Machine) -> None:
        super().__init__(mod)
        self.machine = machine
        self.count = 0
        self._packed: dict[Any, tuple[Kernel, list[Any], dict[str, int]]] = {}

    def visit_call_(self, call: Call) -> Expr:
        call = self.visit_expr_post_order(call)
        if operator_name(call) != "relax.matmul":
            return call
        data, weight = call.args
        form = self._form(data, weight, call)
        if form is None:
            return call
        self.count += 1
        kernel, operands, numbers = self._kernel(weight, form)
        return self.builder_.call_te(
            kernel,
            data,
            *operands,
            columns=int(weight.ty.shape.values[1]),
            **numbers,
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": FUSABLE},
        )

    def _form(self, data: Expr, weight: Expr, call: Call) -> SparseForm | None:
        """Return the storage of the weight; None to leave the call unchanged."""
        if not isinstance(weight, GenericConst) or weight.ty.ndim != 2:
            return None
        if any(dtype_of(each) != "float32" for each in (data, weight, call)):
            return None
        shape, values = shape_of(data), array_of(weight)
        if shape is None or len(shape) < 2 or 0 in shape or not len(values):
            return None
        if values.shape[1] < self.machine.lanes("float32"):
            return None
        known = all(isinstance(size, int) for size in shape)
        return sparse_form(values, int(np.prod(shape[:-1])) if known else 0, self.machine)

    def _kernel(self, weight: Expr, form: SparseForm) -> tuple[Kernel, list[Expr], dict[str, int]]:
        """Return the kernel with its constants and scalars; each weight is packed once."""
        key = (weight, form)
        if key not in self._packed:
            panels = pack_panels(array_of(weight), form.width)
            if form.groups is None:
                packed = pack_blocks(panels)
                arrays: tuple[Any, ...] = packed.values, packed.index
                kernel: Kernel = matmul_sparse
                numbers = {"longest": packed.longest}
            else:
                arrays = pack_groups_of(panels, form.groups)
                kernel, numbers = matmul_n_of_m, {"keep": form.groups.keep, "of": form.groups.of}
            self._packed[key] = kernel, [as_constant(each) for each in arrays], numbers
        return self._packed[key]
