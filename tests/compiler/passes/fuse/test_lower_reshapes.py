"""Kernels that only reshape become views; kernels that choose between indices are skipped."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.relax import op

from compiler.passes.context import PipelineContext
from compiler.passes.fuse.lower_reshapes import lower_reshapes


def mirrored(data: te.Tensor) -> te.Tensor:
    size = data.shape[1]
    return te.compute(data.shape, lambda i, j: data[i, tirx.min(j, size - 1 - j)], name="mirrored")


def test_a_reshape_becomes_a_view_and_other_kernels_stay() -> None:
    builder = relax.BlockBuilder()
    size = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([size, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            chosen = builder.emit_te(mirrored, x)
            flat = builder.emit(op.reshape(chosen, [size * 4]))
            result = builder.emit_output(flat)
        builder.emit_func_output(result)
    mod = relax.transform.LegalizeOps()(builder.get())
    lowered = lower_reshapes(mod, PipelineContext())
    text = lowered["main"].script()
    assert "R.reshape(" in text
    assert text.count("call_tir") == 1
    kernels = {var.name_hint: function for var, function in lowered.functions_items()}
    assert "T.min" in kernels["mirrored"].script()


def test_a_reshape_that_tvm_cannot_analyze_stays_a_copy() -> None:
    """Its test of divisibility fails with an internal error where a size is a sum, as behind padding."""
    builder = relax.BlockBuilder()
    size = tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([8, size + 2, 5], "float32"))
    given = relax.Var("given", relax.ShapeType([size]))
    with builder.function("main", [x, given]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(op.reshape(x, [2, 4, size + 2, 5])))
        builder.emit_func_output(result)
    mod = relax.transform.LegalizeOps()(builder.get())
    assert lower_reshapes(mod, PipelineContext())["main"].script().count("call_tir") == 1


def test_a_reshape_to_no_elements_stays_a_copy() -> None:
    """In `relax.reshape` a size of 0 stands for the argument's size of that axis, which may not have one."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType([0], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            row = builder.emit_te(lambda data: te.compute((1, 0), lambda i, j: data[j], name="row"), x)
            result = builder.emit_output(builder.emit(op.negative(row)))
        builder.emit_func_output(result)
    mod = relax.transform.LegalizeOps()(builder.get())
    assert lower_reshapes(mod, PipelineContext())["main"].script().count("call_tir") == 2


def _flattened(*, returned: bool) -> str:
    """`main` with a reshape whose size a MatchCast behind its dataflow block names; it is a result if `returned`."""
    builder = relax.BlockBuilder()
    size, count = tirx.Var("n", "int64"), tirx.Var("count", "int64")
    x = relax.Var("x", relax.TensorType([size, 4], "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            flat = builder.emit(op.reshape(x, [size * 4]))
            checked = builder.emit_output(builder.match_cast(flat, relax.TensorType(dtype="float32", ndim=1)))
        named = builder.match_cast(checked, relax.TensorType([count], "float32"))
        result = builder.emit(relax.Tuple([named])) if returned else builder.emit(op.negative(named))
        builder.emit_func_output(result)
    mod = relax.transform.CanonicalizeBindings()(relax.transform.LegalizeOps()(builder.get()))
    return str(lower_reshapes(mod, PipelineContext())["main"].script())


def test_a_reshape_that_is_checked_behind_its_block_becomes_a_view() -> None:
    text = _flattened(returned=False)
    assert "R.match_cast(R.reshape(x" in text
    assert text.count("call_tir") == 1


def test_a_result_stays_a_copy() -> None:
    text = _flattened(returned=True)
    assert "R.reshape(" not in text
    assert text.count("call_tir") == 1
