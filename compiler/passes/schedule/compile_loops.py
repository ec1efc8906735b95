"""compile-loops: fuse a loop over kernel calls into one kernel that calls the body's kernels in turn.

A loop iteration costs the virtual machine more than a small kernel takes: function calls, allocations, conditions,
shapes. Here the tensors of an iteration are in one workspace, with a double-buffered state: each iteration reads the
half written by the previous one and writes the other. Elements of stacks whose rows are whole cache lines are written
in place.

Functions that run a loop are those of `compiler.frontends.onnx.operators.control_flow.loop_body`. A loop with its own
end condition, or with a computed number of iterations, that stacks elements is run some iterations at a time, and their
stacks are joined like those of single iterations. Loops whose bodies do anything other than call kernels on tensors of
fixed sizes (fixed during the loop) stay with the virtual machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import relax, tirx
from tvm.ir import GenericConst, GlobalVar, IRModule, Op
from tvm_ffi import structural_equal

from compiler.passes.context import PipelineContext
from compiler.passes.registry import graph_pass
from compiler.passes.rewriting.graph import with_body
from compiler.passes.rewriting.substitution import calls_of_functions
from compiler.passes.schedule.loop_kernel import (
    Branch,
    Copy,
    KernelCall,
    LoopForm,
    LoopKernel,
    NotCompiledError,
    Step,
    StepReader,
    Tensor,
    Value,
    View,
    bytes_of,
    copy_kernel,
    tensor_of,
)
from schedules.annotations import LOOP
from schedules.ir.tvm_private import set_type
from schedules.ir.tvm_types import Binding, Call, Expr, Function, PrimFunc, SeqExpr, Var

_CALL_TIR = Op.get("relax.call_tir")
_ROOM = 1 << 20  # bytes of a stack with an unknown number of rows
_ROWS, _FEWEST_ROWS = 64, 4


@graph_pass("compile-loops", summary="Compile each loop over kernels to one kernel", only="processor")
def compile_loops(mod: IRModule, context: PipelineContext) -> IRModule:
    """Runs after `apply-schedules`, on inner loops first: they are kernels to the outer ones."""
    waiting = [variable for variable, function in mod.functions_items() if _is_loop(function)]
    changed = True
    while waiting and changed:
        changed = False
        for variable in list(waiting):
            try:
                mod = _Compiler(mod, variable).compiled()
            except NotCompiledError:
                continue
            waiting.remove(variable)
            changed = True
    return mod


def _is_loop(function: object) -> bool:
    return isinstance(function, relax.Function) and LOOP in (function.attrs or {})


@dataclass(frozen=True)
class _Loop:
    """The components of a function that runs a loop.

    Attributes:
        states: number of tensors in the state; these parameters follow the level and the iteration number.
        rows: the number of iterations, if known when the function is called.
        body: the call of the function of one iteration.
    """

    function: Function
    states: int
    rows: Expr | None
    body: Call

    @staticmethod
    def of(variable: GlobalVar, function: Function) -> _Loop:
        """Recognize a loop. Raises NotCompiledError if the function was rewritten beyond recognition."""
        states, has_count = (int(each) for each in function.attrs[LOOP])
        bodies = [call for call in calls_of_functions(function.body) if call.op.name_hint != variable.name_hint]
        if len(bodies) != 1:
            raise NotCompiledError("several calls of other functions")
        rows = function.params[-1].ty.values[0] if has_count else None
        return _Loop(function, states, rows, bodies[0])


class _Compiler:
    """Compiles the loop of one function of a module."""

    def __init__(self, mod: IRModule, variable: GlobalVar) -> None:
        self._mod, self._variable = mod, variable
        self._loop = _Loop.of(variable, mod[variable])

    def compiled(self) -> IRModule:
        """The module with the loop replaced by a kernel. Raises NotCompiledError."""
        form = self._form()
        kernel = LoopKernel(form)
        function, numbers = kernel.function()
        name = self._free_name("loop")
        added = {name: function}
        set_type(name, function.ty)
        operands = relax.Tuple([*(each.given for each in form.given), *numbers])
        ty = relax.TupleType(kernel.result_types)
        call = relax.Call(_CALL_TIR, [name, operands], None, [ty], ret_ty=ty)
        results = relax.Var("results", ty)
        binding = relax.VarBinding(results, call)
        changed = self._in_one(binding) if form.level is not None else self._in_parts(form, binding, added)
        functions = {**dict(self._mod.functions_items()), **added, self._variable: changed}
        return relax.transform.Normalize()(IRModule(functions, self._mod.attrs, self._mod.global_infos))

    def _free_name(self, base: str) -> GlobalVar:
        used = {str(each.name_hint) for each in self._mod.functions}
        name, number = base, 0
        while name in used:
            number += 1
            name = f"{base}{number}"
        return GlobalVar(name)

    def _form(self) -> LoopForm:
        """Convert the loop to steps."""
        loop, function = self._loop, self._loop.function
        tensors = [
            tensor_of(each.ty, {}, given=each) for each in function.params if isinstance(each.ty, relax.TensorType)
        ]
        level, first, rest = tensors[0], tensors[1], tensors[2:]
        initial, captured = rest[: loop.states], rest[loop.states :]
        iteration = Tensor([], "int64")
        state = [Tensor(each.shape, each.dtype) for each in initial]
        values = {each.given: View(each, tuple(each.shape)) for each in captured}
        for old, tensor in zip([first, *initial], [iteration, *state], strict=True):
            values[old.given] = View(tensor, tuple(tensor.shape))
        reader = StepReader(self._mod)
        arguments = [self._argument(each, values, reader) for each in loop.body.args]
        results = reader.call(self._mod[loop.body.op], arguments)
        assert isinstance(results, list)
        go, views = _view(results[1]), [_view(each) for each in results[2:]]
        following, elements = views[: loop.states], views[loop.states :]
        for old, view in zip(state, following, strict=True):
            if old.dtype != view.tensor.dtype or not structural_equal(old.shape, list(view.shape)):
                raise NotCompiledError("a state that changes its shape")
        always = isinstance(go.tensor.given, GenericConst) and bool(go.tensor.given.value.numpy())
        ends = [go.tensor, *(view.tensor for view in (*following, *elements))]
        steps, read = _needed(reader.steps, ends)
        rows = loop.rows if elements and loop.rows is not None else _rows_of_part(elements) if elements else None
        in_one = rows is None or rows is loop.rows
        operands = [*([level] if in_one else []), first, *initial]
        captured_reads = [each for each in (*captured, *(tensor for _, tensor in reader.constants)) if each in read]
        return LoopForm(
            steps=steps,
            iteration=iteration,
            state=state,
            following=following,
            go=None if always else go,
            elements=elements,
            rows=rows,
            initial=initial,
            level=level if in_one else None,
            first=first,
            given=[*operands, *captured_reads],
        )

    def _argument(self, argument: Expr, values: dict[Var, View], reader: StepReader) -> Value:
        if isinstance(argument, relax.ShapeExpr):
            return tuple(argument.values)
        if isinstance(argument, GenericConst):
            return reader.constant(argument)
        if argument not in values:
            raise NotCompiledError("a body argument that is computed in each iteration")
        return values[argument]

    def _in_one(self, binding: Binding) -> Function:
        """Replace the function's body by one call of the kernel."""
        function = self._loop.function
        count = len(function.ret_ty.fields)
        result = relax.Tuple([relax.TupleGetItem(binding.var, index) for index in range(count)])
        body = relax.SeqExpr([relax.BindingBlock([binding])], result)
        return with_body(function, body).without_attr(LOOP)

    def _in_parts(self, form: LoopForm, binding: Binding, added: dict[GlobalVar, PrimFunc]) -> Function:
        """Replace the lowest level of the function's recursion, which ran one iteration, by one that runs several."""
        function = self._loop.function
        count = len(function.ret_ty.fields)
        items = [relax.TupleGetItem(binding.var, index) for index in range(count + 1)]
        steps = relax.Var("steps", relax.TensorType([1], "int64"))
        shape = relax.Var("shape", relax.ShapeType(ndim=1))
        rows = tirx.Var("rows", "int64")
        known = relax.Var("known", relax.ShapeType([rows]))
        bindings = [
            binding,
            relax.VarBinding(steps, items[-1]),
            relax.VarBinding(shape, relax.op.tensor_to_shape(steps)),
            relax.MatchCast(known, shape, relax.ShapeType([rows])),
        ]
        results: list[Expr] = items[: count - len(form.elements)]
        for index, view in enumerate(form.elements, start=len(results)):
            dtype, stack_type = view.tensor.dtype, binding.var.ty.fields[index]
            kernel, numbers = copy_kernel(list(stack_type.shape.values), rows, dtype)
            name = self._free_name(f"{self._variable.name_hint}_rows{index}")
            set_type(name, kernel.ty)
            added[name] = kernel
            ty = relax.TensorType([rows, *view.shape], dtype)
            stack = relax.Var(f"stack{index}", stack_type)
            part = relax.Var(f"part{index}", ty)
            call = relax.Call(_CALL_TIR, [name, relax.Tuple([stack, *numbers])], None, [ty], ret_ty=ty)
            bindings += [relax.VarBinding(stack, items[index]), relax.VarBinding(part, call)]
            results.append(part)
        once = relax.SeqExpr([relax.BindingBlock(bindings)], relax.Tuple(results))
        body = _with_branch(function.body, self._loop.body, once)
        return with_body(function, body)


def _view(value: Value) -> View:
    if not isinstance(value, View):
        raise NotCompiledError("a result that is not a tensor")
    return value


def _rows_of_part(elements: list[View]) -> int:
    """Number of iterations per kernel call if the total is unknown: as many as fit a megabyte of stacks."""
    sizes = [bytes_of(view.shape, view.tensor.dtype) for view in elements]
    largest = max((size for size in sizes if isinstance(size, int)), default=_ROOM // _ROWS)
    return min(max(_ROOM // max(largest, 1), _FEWEST_ROWS), _ROWS)


def _needed(steps: list[Step], ends: list[Tensor]) -> tuple[list[Step], set[Tensor]]:
    """The steps that these tensors depend on, and every tensor that they read."""
    read = set(ends)
    needed: list[Step] = []
    for step in reversed(steps):
        if isinstance(step, KernelCall):
            if not read.isdisjoint(step.results):
                read.update(each.tensor for each in step.operands if isinstance(each, View))
                needed.append(step)
        elif isinstance(step, Copy):
            if step.result in read:
                read.add(step.source)
                needed.append(step)
        else:
            sides = [_needed(side, list(read)) for side in step.steps]
            if any(side for side, _ in sides):
                read = sides[0][1] | sides[1][1] | {step.condition}
                needed.append(Branch(step.condition, (sides[0][0], sides[1][0])))
    return needed[::-1], read


def _with_branch(sequence: SeqExpr, call: Call, branch: SeqExpr) -> SeqExpr:
    """The code with the branch that contains the call replaced."""
    blocks = []
    for block in sequence.blocks:
        bindings = []
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.If) and any(
                each.same_as(call) for each in calls_of_functions(value.true_branch)
            ):
                value = relax.If(value.cond, branch, value.false_branch, value.span)
                binding = relax.VarBinding(binding.var, value)
            bindings.append(binding)
        blocks.append(relax.BindingBlock(bindings))
    return relax.SeqExpr(blocks, sequence.body)
