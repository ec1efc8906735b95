"""Final passes over every scheduled kernel, whichever rule made it.

Workarounds for TVM's handling of bfloat16 and 8-bit floats, which it stores as integers of the same width.

Seen with apache-tvm 0.27: a load inside the value of a Let is read as the integer that holds it (a maximum of 48640.0
for numbers near 1), and a vector that repeats one element has no form that can be stored.

Elementary functions that TVM's code generator cannot vectorize, or supports only in wider dtypes.

Measured on apache-tvm 0.27 by generating a vector loop around each function: those of `_SCALAR` fail in every type,
those of `_WIDE` in float16. For float32, `vector_math` implements the former.
"""

from __future__ import annotations

from schedules.instructions import prefetch, rounding, row_sums, select_lanes, unpack_bits, vector_math
from schedules.instructions.dot_products import amx, table
from schedules.instructions.element_loops import vectorize_element_loops
from schedules.instructions.llvm_functions import PREFIX
from schedules.instructions.rounding import rounded_int32
from schedules.ir.access import with_flat_indices
from schedules.ir.expression import buffers_loaded, changed_block, nodes, substitute, uses, vector_lanes
from schedules.ir.inline import call_name
from schedules.ir.lets import chosen_conditions, fresh_lets, guarded_divisors, hide_backward_divisions, own_differences
from schedules.ir.stages import product, shape_of
from schedules.ir.tir import (
    VECTORIZED,
    Buffer,
    Call,
    Expr,
    Node,
    PrimFunc,
    Stmt,
    s_tir,
    structural_equal,
    structural_map,
    tirx,
    tvm,
)
from schedules.machine import Machine

# Vectorized clamping that propagates NaN: TVM's own NaN test has no vector form and is scalarized.


def vector_limits(body: Stmt, used: set[str]) -> Stmt:
    """A statement with each `isnan(x) ? x : min(max(x, low), high)` of float32 as one function; `used` receives it."""

    def visit(choice: Expr) -> Expr:
        value = choice.true_value
        tested = choice.condition
        if call_name(tested) != "tirx.isnan" or str(value.ty) != "float32":
            return choice
        limits = _limits(choice.false_value, value) if structural_equal(tested.args[0], value) else None
        if limits is None:
            return choice
        used.add(vector_math.LIMIT)
        return vector_math.call(vector_math.LIMIT, value, *limits)

    return structural_map(body, (tirx.Select, visit))


def _limits(expr: Expr, value: Expr) -> tuple[Expr, Expr] | None:
    """(low, high) of `min(max(value, low), high)`, or of only one of these."""
    low, high = tirx.FloatImm("float32", -float("inf")), tirx.FloatImm("float32", float("inf"))
    if isinstance(expr, tirx.Min) and isinstance(expr.b, tirx.FloatImm):
        expr, high = expr.a, expr.b
    if isinstance(expr, tirx.Max) and isinstance(expr.b, tirx.FloatImm):
        expr, low = expr.a, expr.b
    return (low, high) if structural_equal(expr, value) else None


# NaN tests as comparisons: TVM's `x != x` has no vector form and is scalarized.

# IEEE 754: without the sign, the bits of a NaN are greater than those of infinity.
_INFINITY = {"float16": ("int16", 0x7C00), "float32": ("int32", 0x7F800000), "float64": ("int64", 0x7FF << 52)}


def vector_nan_tests(body: Stmt) -> Stmt:
    """Replace each `isnan` in a statement by a comparison: in a select of the numbers, otherwise of their bits."""
    return structural_map(structural_map(body, (tirx.Select, _choice)), (tvm.ir.Call, _test))


def _choice(select: Expr) -> Expr:
    """isnan(x) ? a : b => x >= -inf ? b : a, one instruction (`not x >= -inf` would become `x < -inf`)"""
    if call_name(select.condition) != "tirx.isnan":
        return select
    value = select.condition.args[0]
    if str(value.ty) not in _INFINITY:
        return select
    minimum = tirx.FloatImm(str(value.ty), -float("inf"))
    return tirx.Select(value >= minimum, select.false_value, select.true_value)


def _test(call: Call) -> Expr:
    if call_name(call) != "tirx.isnan":
        return call
    known = _INFINITY.get(str(call.args[0].ty))
    if known is None:
        return call
    dtype, infinity = known
    magnitude = tirx.reinterpret(dtype, call.args[0]) & tirx.const(_largest(dtype), dtype)
    return magnitude > tirx.const(infinity, dtype)


def _largest(dtype: str) -> int:
    return (1 << int(dtype.removeprefix("int")) - 1) - 1


_PREFIXES = ("bfloat16", "float8", "float6", "float4")


def inline_narrow_lets(root: Node) -> Node:
    """Inline variables that are bound to values computed from narrow floats."""

    def replace(let: Expr) -> Expr:
        if not any(map(_is_narrow, buffers_loaded(let.value))):
            return let
        # Variables bound in the body may now read it.
        return inline_narrow_lets(substitute(let.body, {let.var: let.value}))

    return structural_map(root, (tirx.Let, replace))


def widen_narrow_lets(root: Node) -> Node:
    """Bind narrow floats as float32, and compute the values that Lets bind in float32: TVM's pass BF16ComputeLegalize
    converts bfloat16 elsewhere, but does not visit them."""

    def retyped(let: Expr) -> Expr:
        if not _is_narrow(let.var):
            return let
        variable = tirx.Var(str(let.var.name), "float32")
        body = substitute(let.body, {let.var: tirx.Cast(str(let.var.ty), variable)})
        return tirx.Let(variable, _as_float32(let.value), body)

    def widened(let: Expr) -> Expr:
        return tirx.Let(let.var, structural_map(let.value, _IN_FLOAT32), let.body)

    return structural_map(structural_map(root, (tirx.Let, retyped)), (tirx.Let, widened))


def _wide_arithmetic(node: Expr) -> Expr:
    return tirx.Cast(str(node.ty), type(node)(_as_float32(node.a), _as_float32(node.b))) if _is_narrow(node) else node


def _wide_comparison(node: Expr) -> Expr:
    return type(node)(_as_float32(node.a), _as_float32(node.b)) if _is_narrow(node.a) else node


def _wide_selection(node: Expr) -> Expr:
    if not _is_narrow(node):
        return node
    sides = _as_float32(node.true_value), _as_float32(node.false_value)
    return tirx.Cast(str(node.ty), tirx.Select(node.condition, *sides))


def _wide_cast(node: Expr) -> Expr:
    """A cast from a narrow float to float32."""
    return _as_float32(node.value) if str(node.ty) == "float32" and _is_narrow(node.value) else node


def _wide_call(node: Call) -> Expr:
    """A function of narrow floats, except those of their bits."""
    name = call_name(node)
    if name in _OF_BITS or not any(map(_is_narrow, node.args)):
        return node
    arguments = [_as_float32(each) if _is_narrow(each) else each for each in node.args]
    if not _is_narrow(node):
        return tirx.call_intrin(str(node.ty), name, *arguments)
    return tirx.Cast(str(node.ty), tirx.call_intrin("float32", name, *arguments))


def _as_float32(value: Expr) -> Expr:
    """A narrow float as float32, as TVM computes it: without rounding it in between."""
    exact = isinstance(value, tirx.Cast) and str(value.value.ty) == "float32"
    return value.value if exact else tirx.Cast("float32", value)


_OF_BITS = ("tirx.reinterpret", "tirx.nextafter", "tirx.call_extern")
_IN_FLOAT32 = [
    ((tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Min, tirx.Max), _wide_arithmetic),
    ((tirx.EQ, tirx.NE, tirx.LT, tirx.LE, tirx.GT, tirx.GE), _wide_comparison),
    (tirx.Select, _wide_selection),
    (tirx.Cast, _wide_cast),
    (tvm.ir.Call, _wide_call),
]


def serialize_vectors(root: Stmt) -> Stmt:
    """Serialize vectorized loops that broadcast a narrow float to all lanes, or call a function with no vector form."""

    def serialize(loop: Stmt) -> Stmt:
        if loop.kind != VECTORIZED:
            return loop
        values, calls = [each.value for each in nodes(loop.body, tirx.BufferStore)], nodes(loop.body, tvm.ir.Call)
        repeats_narrow = any(_is_narrow(value) and not uses(value, loop.loop_var) for value in values)
        if repeats_narrow or any(call_name(call) in _SCALAR and str(call.ty) == "float64" for call in calls):
            return tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
        return loop

    return structural_map(root, (tirx.For, serialize))


def _is_narrow(expr: Expr) -> bool:
    return str(expr.ty).startswith(_PREFIXES)


_SCALAR = frozenset({"tirx.sinh", "tirx.cosh"})
_WIDE = _SCALAR | {
    f"tirx.{name}"
    for name in (
        *("log1p", "asin", "acos", "atan", "asinh", "acosh", "erf"),
        *("atan2", "hypot", "copysign", "nextafter", "ldexp"),
    )
}


def widen_narrow_calls(root: Stmt) -> Stmt:
    """Compute functions of narrow floats in float32, and round the result."""

    def widen(call: Call) -> Expr:
        dtype = str(call.ty)
        # `nextafter` depends on the type of the number.
        if dtype not in _NARROW or call_name(call) not in _WIDE - {"tirx.nextafter"}:
            return call
        arguments = [tirx.Cast("float32", each) if str(each.ty) == dtype else each for each in call.args]
        return tirx.Cast(dtype, tirx.call_intrin("float32", call_name(call), *arguments))

    return structural_map(root, (tvm.ir.Call, widen))


# Modules of operators implemented as LLVM IR functions.
_FAMILIES = (rounding, unpack_bits, select_lanes, row_sums)
_NARROW = ("float16", "bfloat16")
_TILE_SIZE = 96  # elements; accumulators of plain reductions hold at most four vectors


def finish(function: PrimFunc, machine: Machine) -> PrimFunc:
    """Vectorize elementary functions, give every Let its own variable, and rewrite expressions that TVM cannot generate
    or misreads.

    Kernels of one library must import the same text for a function: the linker keeps only one copy.
    """
    used: set[str] = set()
    suffix = vector_math.IN_TILE if _holds_tile(function.body) else ""
    body = with_flat_indices(function.body, function.params)
    body = vector_nan_tests(vector_limits(vectorize_element_loops(body, machine), used))
    body = hide_backward_divisions(serialize_vectors(widen_narrow_calls(widen_narrow_lets(inline_narrow_lets(body)))))
    body = fresh_lets(
        guarded_divisors(chosen_conditions(own_differences(_vector_calls(_rounded_integers(body), used, suffix))))
    )
    called, lengths = _called(body), vector_lengths(body)
    if used:
        body = with_import(body, vector_math.definitions(used, lengths, machine))
    texts = [family.definitions(lengths, machine) for family in _FAMILIES if not called.isdisjoint(family.OPERATORS)]
    texts += [] if called.isdisjoint(prefetch.SYMBOLS.values()) else [prefetch.DEFINITIONS]
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
    calls = nodes(root, tvm.ir.Call)
    return {str(call.args[0].value) if call_name(call) == "tirx.call_extern" else call_name(call) for call in calls}


def _holds_tile(root: Stmt) -> bool:
    """True if register tiles are likely to occupy the registers: constant-size local buffers that exist at one time
    are larger than a few vectors in total."""
    spans: dict[Buffer, tuple[int, int]] = {}
    for place, access in enumerate(nodes(root, tvm.ir.TensorLoad, tirx.BufferStore)):
        buffer = access.source if isinstance(access, tvm.ir.TensorLoad) else access.buffer
        if str(buffer.ty.storage_scope) == "local":
            first, _ = spans.get(buffer, (place, place))
            spans[buffer] = (first, place)
    sizes = {buffer: product(shape_of(buffer)) or 0 for buffer in spans}
    starts = {first for first, _ in spans.values()}

    def alive(place: int) -> int:
        return sum(sizes[buffer] for buffer, (first, last) in spans.items() if first <= place <= last)

    return any(alive(start) >= _TILE_SIZE for start in starts)


def _vector_calls(root: Stmt, used: set[str], suffix: str) -> Stmt:
    """Replace calls of TVM's elementary functions by vectorized ones, in the variant for this kernel; float16 and
    bfloat16 are computed in float32."""

    def replace(call: Call) -> Expr:
        plain = call_name(call).removeprefix("tirx.").removeprefix(PREFIX)
        if plain not in vector_math.FUNCTIONS or plain == vector_math.LIMIT:
            return call
        name = plain + suffix
        dtype = str(call.ty)
        if dtype.partition("x")[0] == "float32":  # or a vector of them, in kernels with explicit vectors
            used.add(name)
            return vector_math.call(name, *call.args)
        if dtype in _NARROW and plain != "round":
            used.add(name)
            wide = [tirx.Cast("float32", each) for each in call.args]
            return tirx.Cast(dtype, vector_math.call(name, *wide))
        return call

    return structural_map(root, (tvm.ir.Call, replace))


def vector_lengths(root: Stmt) -> frozenset[int]:
    """The vector lengths that result from vectorizing the loops of a body."""
    loops = [loop for loop in nodes(root, tirx.For) if loop.kind == tirx.ForKind.VECTORIZED]
    calls = [call for call in nodes(root, tvm.ir.Call) if call_name(call).startswith(PREFIX)]
    explicit = {vector_lanes(call) for call in calls}
    known = (int(loop.extent.value) for loop in loops if isinstance(loop.extent, tirx.IntImm))
    return frozenset({1, *explicit, *known})


def with_import(body: Stmt, text: str) -> Stmt:
    """The body with LLVM IR imported into its module."""
    if isinstance(body, s_tir.SBlockRealize):
        block = changed_block(body.block, body=with_import(body.block.body, text))
        return s_tir.SBlockRealize(body.iter_values, body.predicate, block)
    return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), body)
