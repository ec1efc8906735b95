"""TVM's lowering of kernels with six changes: needless checks of arguments are left out, tiles of registers
lie on the stack, vectors have the lengths that rules gave them, indices hold no Let, scratch buffers of booleans
hold bytes, and kernels call others by their symbols.

A kernel is only called by the module it belongs to, on tensors that the virtual machine made or has checked. TVM
still has each kernel look at each argument's type, rank, element type, device and strides, with a message that holds
the whole signature for each: often more code than the kernel itself. Symbolic sizes stay checked, and so does anything
that is not recognized here.

Buffers of the scope "local" are tiles that are to be held in registers. TVM would take them from the heap, where
LLVM promotes what it can late and not all of it.

Lets in indices come from divisions by sizes, in TVM's last steps (see `schedules.ir.lets`).

Scratch buffers of booleans hold bytes.

TVM's pass StorageRewrite makes a buffer that a kernel allocates one of vectors where every access is a vector of the
same length, and one of booleans a buffer of int8 vectors without a comparison where it is loaded. Code generation then
stops at vectors of int8 where conditions are wanted, or inverts them as integers.

Passes the extent of the next parallel loop to the thread pool, so that it does not start more threads than that.

TVM's generated code launches a region without the extent of its loop. Here it calls the barrier of parallel regions
before, for a region of one part whose counter holds the extent. There TVM's own barrier has nothing to wait for; that
of the thread pool reads the extent (`device/cpp/thread_pool.c`).

Kernels that hold no blocks, which most schedules write, have a shorter lowering on processors: about a third of the
processor time of TVM's whole lowering went to passes that look for blocks, threads of a GPU and its shared memory,
above all `CompactBufferAllocation`, which bounds each access to each buffer. Rules that emit loops allocate what they
need, so there is nothing to compact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from schedules.codegen.nest import CHUNKED
from schedules.instructions.finish import with_import
from schedules.ir.expression import buffers_loaded
from schedules.ir.inline import call_name
from schedules.ir.lets import inlined_divisions, kept_differences, opaque_floats
from schedules.ir.stages import dtype_of, product, shape_of
from schedules.ir.tir import s_tir, structural_map, structural_walk, tirx, tvm
from schedules.ir.tvm_types import Expr, GlobalVar, Node, PrimFunc, Stmt, Var
from schedules.machine import dtype_bits

PIPELINE = "tensorwright"
_STACK_BITS = 8 * (16 << 10)  # far larger than any tile held in registers

# Messages of TVM's argument checks, after the name of the argument.
_OF_A_TENSOR = (".ndim", ".dtype", ".device_type", ".device_id", ".strides", " data pointer is NULL")
_OF_A_CALL = ("Expected ", "args pointer is NULL", "Mismatched type on argument #")


def _pipeline() -> tuple[tvm.transform.Pass, tvm.transform.Pass, Callable[[], tvm.transform.Pass]]:
    lower, finalize_host, finalize_device = tvm.tirx.get_tir_pipeline("s_tir")

    @tvm.transform.module_pass(opt_level=0, name="LowerKernels")
    def lowered(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        fixed = with_fixed_vectors(with_plain_kernels(lower))
        # Schedules copy loops with the variables bound in them; TVM's simplifier wants one value for each variable.
        unique = _rewritten(tirx.transform.ConvertSSA()(mod), lambda body: bytes_for_booleans(kept_differences(body)))
        return _rewritten(fixed(unique), lambda body: _on_stack(_unchecked(_without_scopes(body))))

    @tvm.transform.module_pass(opt_level=0, name="FinishKernels")
    def finished(mod: tvm.IRModule, _context: object) -> tvm.IRModule:
        rewritten = _rewritten(mod, lambda body: opaque_floats(inlined_divisions(_linked(body))))
        return with_extents(with_chunk_functions(rewritten))

    def finalize() -> tvm.transform.Pass:
        return tvm.transform.Sequential([finalize_host(), finished])

    return lowered, finalize, finalize_device


def _rewritten(mod: tvm.IRModule, rewrite: Callable[[Node], Node]) -> tvm.IRModule:
    changed = {
        var: function.with_body(rewrite(function.body))
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _without_scopes(body: Stmt) -> Stmt:
    """Attributes of TVM's operators that its code generator does not know and warns about."""

    def visit(mark: Stmt) -> Stmt:
        return mark.body if str(mark.attr_key) == "pragma_scope" else mark

    return structural_map(body, (tirx.AttrStmt, visit))


def _on_stack(body: Stmt) -> Stmt:
    def visit(allocation: Stmt) -> Stmt:
        buffer = allocation.buffer
        size = product(shape_of(buffer))
        if str(buffer.ty.storage_scope) != "local" or size is None or size * dtype_bits(dtype_of(buffer)) > _STACK_BITS:
            return allocation
        return tirx.AllocBuffer(buffer, annotations={"disable_lower_builtin": tirx.IntImm("bool", 1)})

    return structural_map(body, (tirx.AllocBuffer, visit))


def _unchecked(body: Stmt) -> Stmt:
    symbolic = _has_symbolic_sizes(body)

    def visit(check: Stmt) -> Stmt:
        return tirx.Evaluate(tirx.IntImm("int32", 0)) if _is_needless(check, symbolic) else check

    return structural_map(body, (tirx.AssertStmt, visit))


def _parts(check: Stmt) -> list[str]:
    """The first parts of a check's message, which say what it checks."""
    return [str(part.value) for part in check.message_parts[:3]]


def _is_needless(check: Stmt, symbolic: bool) -> bool:
    parts = _parts(check)
    if parts[0].startswith(_OF_A_CALL):
        return True
    about_argument = any(part.endswith(" on argument #") for part in parts)
    if not about_argument:
        return False
    subject = "".join(parts)
    return any(each in subject for each in _OF_A_TENSOR) or (".shape[" in subject and not symbolic)


def _has_symbolic_sizes(body: Stmt) -> bool:
    """True if some argument's size is a variable: it is then compared with others or read as a value."""
    found = False

    def visit(check: Stmt) -> None:
        nonlocal found
        condition = check.condition
        if ".shape[" in "".join(_parts(check)) and isinstance(condition, tirx.EQ):
            found = found or not any(isinstance(side, tirx.IntImm) for side in (condition.a, condition.b))

    structural_walk(body, (tirx.AssertStmt, visit))
    return found


tirx.compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)


def _linked(body: Stmt) -> Stmt:
    """Calls of kernels in the same library by their symbols. For each call of its own TVM's code generator declares a
    function anew, under another name where the first is taken."""
    call_kernel = tvm.ir.Op.get("tirx.tvm_call_cpacked_lowered")

    def visit(statement: Stmt) -> Stmt:
        call = statement.value
        if not isinstance(call, tvm.ir.Call) or not call.op.same_as(call_kernel):
            return statement
        symbol, arguments, begin, end = list(call.args)[:4]

        def argument(index: Expr) -> Expr:
            return tvm.tirx.call_intrin("handle", "tirx.handle_add_byte_offset", arguments, index * _ARGUMENT_BYTES)

        module = tirx.reinterpret("handle", tirx.const(0, "uint64"))
        called = tirx.call_extern("int32", symbol.value, module, argument(begin), end - begin, argument(end))
        failed = tirx.Evaluate(tvm.tirx.call_intrin("int32", "tirx.tvm_throw_last_error"))
        return tirx.IfThenElse(tirx.NE(called, tirx.IntImm("int32", 0)), failed, None)

    return structural_map(body, (tirx.Evaluate, visit))


_ARGUMENT_BYTES = 16  # TVMFFIAny
_SCOPE = "compute_scope"  # TVM's code generator makes a function of what stands in it


def with_chunk_functions(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels whose loops with the mark `CHUNKED` hold functions of their own."""
    changed = {
        var: _with_functions(function)
        for var, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc) and function.attrs and "global_symbol" in function.attrs
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_functions(function: PrimFunc) -> PrimFunc:
    symbol = str(function.attrs["global_symbol"])
    count = 0

    def visit(loop: Stmt) -> Stmt:
        nonlocal count
        if CHUNKED not in loop.annotations:
            return loop
        name = f"{symbol}_chunk{count}_"
        count += 1
        return _called_or_launched(loop, name)

    return function.with_body(structural_map(function.body, (tirx.For, visit)))


def _called_or_launched(loop: Stmt, name: str) -> Stmt:
    """TVM gives the function the variables that its body reads, in their order, so the call can pass the same ones."""
    scope = tirx.AttrStmt(tirx.IntImm("int32", 0), _SCOPE, tvm.ir.StringImm(name), loop.body)
    launch = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.PARALLEL, _then_nothing(scope))
    arguments = [
        loop.min if each.same_as(loop.loop_var) else each for each in tirx.analysis.undefined_vars(loop.body, [])
    ]
    called = tirx.call_extern("int32", name, *arguments)
    failed = tirx.Evaluate(tvm.tirx.call_intrin("int32", "tirx.tvm_throw_last_error"))
    call = tirx.IfThenElse(tirx.NE(called, tirx.IntImm("int32", 0)), failed, None)
    # The function is generated at the launch, which therefore comes first.
    one = tirx.IntImm(str(loop.extent.ty), 1)
    return tirx.IfThenElse(tirx.NE(loop.extent, one), _then_nothing(launch), call)


def _then_nothing(statement: Stmt) -> Stmt:
    """A statement, and one after it that sets a debug location of its own: else TVM gives what follows a function that
    of its last statement, which LLVM refuses."""
    return tirx.SeqStmt([statement, tirx.Evaluate(tirx.IntImm("int32", 0))])


_SCALABLE = ("+v", "+zv")


def with_fixed_vectors(lower: Callable[[tvm.IRModule], tvm.IRModule]) -> Callable[[tvm.IRModule], tvm.IRModule]:
    """`lower`, which is not told of scalable vectors."""

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        hidden = {feature for target in _targets(mod) for feature in _scalable(target)}
        if not hidden:
            return lower(mod)
        fixed = _retargeted(mod, lambda names: [name for name in names if name not in hidden])
        with next(_targets(fixed)):
            result = lower(fixed)
        return _retargeted(result, lambda names: [*names, *sorted(hidden)])

    return lowered


def _targets(mod: tvm.IRModule) -> Iterator[tvm.target.Target]:
    functions = (function for _, function in mod.functions_items() if isinstance(function, tirx.PrimFunc))
    return (function.attrs["target"] for function in functions if function.attrs and "target" in function.attrs)


def _scalable(target: tvm.target.Target) -> list[str]:
    return [str(name) for name in target.attrs.get("mattr", ()) if str(name).startswith(_SCALABLE)]


def _retargeted(mod: tvm.IRModule, change: Callable[[list[str]], list[str]]) -> tvm.IRModule:
    """`mod` with the features of its functions' processors changed."""

    def changed(options: Mapping[str, Any]) -> dict[str, Any]:
        result = {**options, "mattr": change([str(name) for name in options.get("mattr", ())])}
        if "host" in options:
            result["host"] = changed(options["host"])
        return result

    functions = {
        var: function.with_attr("target", tvm.target.Target(changed(function.attrs["target"].export())))
        if isinstance(function, tirx.PrimFunc) and function.attrs and "target" in function.attrs
        else function
        for var, function in mod.functions_items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def bytes_for_booleans(body: Stmt) -> Stmt:
    """Replace allocated boolean buffers of a statement by int8: stores write 1 or 0, loads compare with 0.

    Buffers whose address is taken, or that others alias, stay as they are.
    """
    bytes_of = {buffer: _of_bytes(buffer) for buffer in _allocated(body) if dtype_of(buffer) == "bool"}
    for buffer in _aliased(body):
        bytes_of.pop(buffer, None)
    if not bytes_of:
        return body
    made = set(bytes_of.values())

    def renamed(variable: Var) -> Expr:
        return bytes_of.get(variable, variable)

    def load(node: Expr) -> Expr:
        if node.source not in made:
            return node
        value = tirx.BufferLoad(node.source, list(node.indices))
        return tirx.NE(value, _constant(0, value))

    def store(node: Stmt) -> Stmt:
        if node.buffer not in made:
            return node
        return tirx.BufferStore(node.buffer, _number(node.value), list(node.indices))

    return structural_map(body, [(tvm.ir.Var, renamed), (tvm.ir.TensorLoad, load), (tirx.BufferStore, store)])


def _allocated(body: Stmt) -> list[Expr]:
    found: list[Stmt] = []
    structural_walk(
        body,
        [
            (s_tir.SBlock, lambda block: found.extend(block.alloc_buffers)),
            (tirx.AllocBuffer, lambda allocation: found.append(allocation.buffer)),
        ],
    )
    return found


def _aliased(body: Stmt) -> list[Expr]:
    """Buffers whose address is taken, or that others match; calls take loads as values."""
    found: list[Node] = []

    def call(node: Expr) -> None:
        by_address = call_name(node) == "tirx.address_of"
        found.extend(arg.source if by_address and isinstance(arg, tvm.ir.TensorLoad) else arg for arg in node.args)

    def block(node: Stmt) -> None:
        found.extend(matched.source.source for matched in node.match_buffers)

    structural_walk(body, [(tvm.ir.Call, call), (s_tir.SBlock, block)])
    return [each for each in found if isinstance(each, tvm.ir.Var)]


def _of_bytes(buffer: Expr) -> Expr:
    kind = buffer.ty
    return tirx.decl_buffer(
        list(kind.shape),
        "int8",
        str(buffer.name),
        strides=list(kind.strides),
        elem_offset=kind.elem_offset,
        scope=str(kind.storage_scope),
        data_alignment=int(kind.data_alignment),
        offset_factor=int(kind.offset_factor),
        layout=kind.layout,
    )


def _number(condition: Expr) -> Expr:
    return tirx.Cast("int8" + str(condition.ty).removeprefix("bool"), condition)


def _constant(number: int, like: Expr) -> Expr:
    scalar, _, lanes = str(like.ty).partition("x")
    constant = tirx.IntImm(scalar, number)
    return tirx.Broadcast(constant, int(lanes)) if lanes else constant


_TOLD = "tensorwright_extent"
_MOST = 4096  # threads: larger extents use all threads
_TEXT = f"""
@__TVMBackendParallelBarrier = external global ptr

define i32 @{_TOLD}(i32 %extent) {{
  %counter = alloca i32
  %group = alloca {{ ptr, i32 }}
  %barrier = load ptr, ptr @__TVMBackendParallelBarrier
  %none = icmp eq ptr %barrier, null
  br i1 %none, label %end, label %tell
tell:
  %count = getelementptr {{ ptr, i32 }}, ptr %group, i64 0, i32 1
  store i32 %extent, ptr %counter
  store ptr %counter, ptr %group
  store i32 1, ptr %count
  %status = call i32 %barrier(i32 0, ptr %group)
  br label %end
end:
  ret i32 0
}}
"""


def with_extents(mod: tvm.IRModule) -> tvm.IRModule:
    """Lowered kernels that announce the extents of their parallel loops."""
    changed = {
        var: _with_extents(function) for var, function in mod.functions_items() if isinstance(function, tirx.PrimFunc)
    }
    return tvm.IRModule({**dict(mod.functions_items()), **changed}, attrs=mod.attrs)


def _with_extents(function: PrimFunc) -> PrimFunc:
    told = False

    def visit(loop: Stmt) -> Stmt:
        nonlocal told
        extent = loop.extent
        if loop.kind != tirx.ForKind.PARALLEL or (isinstance(extent, tirx.IntImm) and int(extent) >= _MOST):
            return loop
        told = True
        bounded = extent if isinstance(extent, tirx.IntImm) else tirx.min(extent, tirx.IntImm(str(extent.ty), _MOST))
        tell = tirx.call_extern("int32", _TOLD, tirx.Cast("int32", bounded))
        # Nothing follows, but sets a debug location of its own: else what follows has one of the loop's function.
        return tirx.SeqStmt([tirx.Evaluate(tell), loop, tirx.Evaluate(tirx.IntImm("int32", 0))])

    body = structural_map(function.body, (tirx.For, visit))
    return function.with_body(with_import(body, _TEXT)) if told else function


Lowering = Callable[[tvm.IRModule], tvm.IRModule]


def with_plain_kernels(lower: Lowering) -> Lowering:
    """`lower`, but for kernels of plain loops, which only go through the passes that concern them."""
    lower_plain = _plain_passes()

    def lowered(mod: tvm.IRModule) -> tvm.IRModule:
        functions = list(mod.functions_items())
        plain = {var for var, function in functions if is_plain(function)}
        if not plain:
            return lower(mod)
        results: dict[GlobalVar, PrimFunc] = {}
        for pick, each in ((True, lower_plain), (False, lower)):
            part = {var: function for var, function in functions if (var in plain) == pick}
            if part:
                results.update(each(tvm.IRModule(part, attrs=mod.attrs)).functions_items())
        return tvm.IRModule(results, attrs=mod.attrs)

    return lowered


def is_plain(function: PrimFunc) -> bool:
    """True for a PrimFunc for a processor without blocks, a root block that holds nothing but its body aside."""
    if not isinstance(function, tirx.PrimFunc) or function.attrs is None or "target" not in function.attrs:
        return False
    return str(function.attrs["target"].kind.name) == "llvm" and holds_no_blocks(function)


def holds_no_blocks(function: PrimFunc) -> bool:
    """True if a PrimFunc has no block but a root block that holds nothing but its body."""
    blocks: list[Stmt] = []
    structural_walk(function.body, (s_tir.SBlock, blocks.append))
    return len(blocks) <= 1 and all(map(_is_bare, blocks))


def _is_bare(block: Stmt) -> bool:
    holds = (block.iter_vars, block.alloc_buffers, block.match_buffers, block.annotations)
    return block.init is None and not any(map(len, holds))


def _plain_passes() -> tvm.transform.Pass:
    """TVM's pipeline "s_tir" without what concerns blocks and GPUs, and without what LLVM does anyway, in its order.

    LLVM hoists conditions and removes loops that do nothing: its code was the same without `HoistIfThenElse` and
    `RemoveNoOp`. Common subexpressions it finds better itself: those that `CommonSubexprElim` names outside of loops
    take registers there, and code with them was 12 % larger and took 13 % longer to generate.
    """
    return tvm.transform.Sequential(
        [
            s_tir.transform.CanonicalizeLoop(),
            s_tir.transform.StmtSimplify(),
            s_tir.transform.AnnotateIrregularLoop(),
            s_tir.transform.LowerOpaqueBlock(),
            tirx.transform.FlattenBuffer(),
            tirx.transform.BF16ComputeLegalize(),
            tirx.transform.NarrowDataType(32),
            s_tir.transform.LoopPartition(),
            tirx.transform.VectorizeLoop(True),
            tirx.transform.StorageRewrite(),
            tirx.transform.UnrollLoop(),
            s_tir.transform.RenormalizeSplitPattern(),
            tirx.transform.StmtSimplify(),
            s_tir.transform.RewriteUnsafeSelect(),
            _guard_vector_loads(),
            tirx.transform.FP8ComputeLegalize(),
            tirx.transform.AnnotateEntryFunc(),
            tirx.transform.SplitHostDevice(),
            tirx.transform.MakePackedAPI(),
            tirx.transform.FP8StorageLegalize(),
            tirx.transform.BF16StorageLegalize(),
        ]
    )


def _guard_vector_loads() -> tvm.transform.Pass:
    @tirx.transform.prim_func_pass(opt_level=0, name="GuardVectorLoads")
    def guarded(function: PrimFunc, _mod: tvm.IRModule, _context: object) -> PrimFunc:
        return function.with_body(structural_map(function.body, (tirx.Select, _guarded)))

    return guarded


def _guarded(select: Expr) -> Expr:
    """A Select that loads vectors under one condition for all lanes, as a branch.

    TVM's simplifier drops the limits of an index that hold under the condition, so the side that is not taken may read
    outside of its buffer; `RewriteUnsafeSelect` knows this for scalars alone.
    """
    condition, sides = select.condition, (select.true_value, select.false_value)
    if not isinstance(condition, tirx.Broadcast) or not any(map(buffers_loaded, sides)):
        return select
    return tirx.if_then_else(condition.value, *sides)
