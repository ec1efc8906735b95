from __future__ import annotations

import tvm
from tvm import relax
from tvm.script import relax as R

import schedules.ir.load_tvm  # noqa: F401  (before tvm)
from compiler.support.formula import evaluate
from compiler.support.operation_count import OperationCount, count_kernels


def counts_of(*shape: object, operator: str = "matmul") -> dict[str, OperationCount]:
    """Counts of the kernels of one operator on a float32 input."""
    builder = relax.BlockBuilder()
    variable = relax.Var("x", R.Tensor(shape, "float32"))
    with builder.function("main", [variable]):
        with builder.dataflow():
            result = builder.emit_output(OPERATORS[operator](variable))
        builder.emit_func_output(result)
    return count_kernels(relax.transform.LegalizeOps()(builder.get()))


def _zeros(*shape: int) -> relax.Expr:
    return relax.op.zeros(shape, "float32")


OPERATORS = {
    "matmul": lambda x: relax.op.matmul(x, _zeros(64, 32)),
    "conv2d": lambda x: relax.op.nn.conv2d(x, _zeros(8, 3, 3, 3), padding=1),
    "relu": relax.op.nn.relu,
    "erf": relax.op.erf,
    "transpose": relax.op.permute_dims,
}


def test_a_matmul_is_two_operations_an_element_and_step() -> None:
    assert evaluate(counts_of(16, 64)["matmul"].formula, {}) == 2 * 16 * 32 * 64


def test_a_convolution_counts_its_taps() -> None:
    # 8 output channels, 10x10 pixels, 3 channels x 3x3 taps, a multiply and an add each.
    assert evaluate(counts_of(1, 3, 10, 10, operator="conv2d")["conv2d"].formula, {}) == 2 * 8 * 100 * 27


def test_elementwise_and_movement() -> None:
    assert evaluate(counts_of(5, 7, operator="relu")["relu"].formula, {}) == 35
    assert evaluate(counts_of(5, 7, operator="erf")["erf"].formula, {}) == 35
    assert counts_of(5, 7, operator="transpose")["transpose"].formula == "0"


def test_symbolic_sizes_make_a_formula_that_says_where_to_look() -> None:
    batch = tvm.tirx.Var("batch", "int64")
    count = counts_of(batch, 64)["matmul"]
    assert count.symbols == {"batch": (0, 0)}
    assert evaluate(count.formula, {"batch": 5}) == 2 * 5 * 32 * 64
