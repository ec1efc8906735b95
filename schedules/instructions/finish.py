"""Final passes over every scheduled kernel, whichever rule made it."""

from __future__ import annotations

from schedules.instructions import prefetch, rounding, row_sums, select_lanes, unpack_bits, vector_math
from schedules.instructions.clips import vector_limits
from schedules.instructions.element_loops import vectorize_element_loops
from schedules.instructions.llvm_functions import PREFIX
from schedules.instructions.nan_tests import vector_nan_tests
from schedules.instructions.narrow_floats import inline_narrow_lets, serialize_narrow_repeats
from schedules.instructions.products import amx, table
from schedules.instructions.rounding import rounded_int32
from schedules.instructions.scalar_calls import serialize_scalar_loops, widen_narrow_calls
from schedules.ir.backward_divisions import hide_backward_divisions
from schedules.ir.inline import call_name
from schedules.ir.lets import chosen_conditions, fresh_lets, own_differences
from schedules.ir.stages import product, shape_of
from schedules.ir.tir import Call, Expr, PrimFunc, Stmt, s_tir, structural_map, structural_walk, tirx, tvm
from schedules.machine import Machine

# Modules of operators whose code is a function of LLVM IR.
_FAMILIES = (rounding, unpack_bits, select_lanes, row_sums)
_NARROW = ("float16", "bfloat16")
_TILE_SIZE = 96  # elements; accumulators of plain reductions hold at most four vectors


def finish(function: PrimFunc, machine: Machine) -> PrimFunc:
    """Vectorize elementary functions, give every Let its own variable, and rewrite expressions that TVM cannot generate
    or misreads.

    Kernels of one library must import the same text for a function: the linker keeps one of them for all.
    """
    used: set[str] = set()
    suffix = vector_math.IN_TILE if _holds_tile(function.body) else ""
    body = vector_nan_tests(vector_limits(vectorize_element_loops(function.body), used))
    body = serialize_narrow_repeats(inline_narrow_lets(body))
    body = hide_backward_divisions(serialize_scalar_loops(widen_narrow_calls(body)))
    body = fresh_lets(chosen_conditions(own_differences(_vector_calls(_rounded_integers(body), used, suffix))))
    called, lengths = _called(body), vector_lengths(body)
    if used:
        body = with_import(body, vector_math.definitions(used, lengths))
    texts = [family.definitions(lengths, machine) for family in _FAMILIES if not called.isdisjoint(family.OPERATORS)]
    texts += [prefetch.DEFINITION] if prefetch.SYMBOL in called else []
    for text in (table.definitions(called, lengths, machine), amx.definitions(called, machine), *texts):
        body = with_import(body, text) if text else body
    return function.with_body(body)


def _rounded_integers(root: Stmt) -> Stmt:
    """Fuse rounding a float32 to an integer with the cast to int32: processors have an instruction for it."""

    def replace(cast: Expr) -> Expr:
        value = cast.value
        if str(cast.ty) == "int32" and call_name(value) == "tirx.nearbyint" and str(value.ty) == "float32":
            return rounded_int32(value.args[0])
        return cast

    return structural_map(root, (tirx.Cast, replace))


def _called(root: Stmt) -> set[str]:
    """Names of the operators and external functions called by a body."""
    names: set[str] = set()

    def visit(call: Call) -> None:
        name = call_name(call)
        names.add(str(call.args[0].value) if name == "tirx.call_extern" else name)

    structural_walk(root, (tvm.ir.Call, visit))
    return names


def _holds_tile(root: Stmt) -> bool:
    """True if register tiles are likely to occupy the registers: constant-size local buffers larger than a few vectors
    in total."""
    held = 0

    def visit(allocation: Stmt) -> None:
        nonlocal held
        buffer = allocation.buffer
        if str(buffer.ty.storage_scope) == "local":
            held += product(shape_of(buffer)) or 0

    structural_walk(root, (tirx.AllocBuffer, visit))
    return held >= _TILE_SIZE


def _vector_calls(root: Stmt, used: set[str], suffix: str) -> Stmt:
    """Replace calls of TVM's elementary functions by vectorized ones, in the variant for this kernel; float16 and
    bfloat16 are computed in float32."""

    def replace(call: Call) -> Expr:
        plain = call_name(call).removeprefix("tirx.").removeprefix(PREFIX)
        if plain not in vector_math.FUNCTIONS or plain == vector_math.LIMIT:
            return call
        name = plain + suffix
        dtype = str(call.ty)
        if dtype == "float32":
            used.add(name)
            return vector_math.call(name, *call.args)
        if dtype in _NARROW and plain != "round":
            used.add(name)
            wide = [tirx.Cast("float32", each) for each in call.args]
            return tirx.Cast(dtype, vector_math.call(name, *wide))
        return call

    return structural_map(root, (tvm.ir.Call, replace))


def vector_lengths(root: Stmt) -> set[int]:
    """The vector lengths that result from vectorizing the loops of a body."""
    lengths = {1}

    def visit(loop: Stmt) -> None:
        if loop.kind == tirx.ForKind.VECTORIZED and isinstance(loop.extent, tirx.IntImm):
            lengths.add(int(loop.extent.value))

    structural_walk(root, (tirx.For, visit))

    def explicit(call: Call) -> None:
        if call_name(call).startswith(PREFIX):
            lengths.add(int(str(call.ty).partition("x")[2] or 1))

    structural_walk(root, (tvm.ir.Call, explicit))
    return lengths


def with_import(body: Stmt, text: str) -> Stmt:
    """The body with LLVM IR imported into its module."""
    if not isinstance(body, s_tir.SBlockRealize):
        return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), body)
    block = body.block
    inner = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), block.body)
    made = s_tir.SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        inner,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )
    return s_tir.SBlockRealize(body.iter_values, body.predicate, made)
