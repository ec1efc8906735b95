# mypy: disable-error-code="valid-type, no-untyped-def"
# ruff: noqa: N805, RET504
"""eliminate-dead-code and eliminate-common-subexpressions."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from compiler.passes.rewriting.matching import as_constant
from tests.compiler.passes.building import Build, apply, operators, run_module


def test_dead_bindings_and_functions_go_and_what_is_used_stays() -> None:
    @I.ir_module
    class Before:
        @R.function(private=True)
        def unused(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            return x

        @R.function(private=True)
        def used(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):
            with R.dataflow():
                y = R.exp(x)
                R.output(y)
            return y

        @R.function
        def main(x: R.Tensor((4,), "float32")) -> R.Tuple(R.Tensor((4,), "float32")):
            cls = Before
            with R.dataflow():
                dead = R.sin(x)
                dead2 = R.cos(dead)  # noqa: F841
                y = cls.used(x)
                gv = (y,)
                R.output(gv)
            return gv

    after = apply("eliminate-dead-code", Before)
    assert sorted(var.name_hint for var in after.get_global_vars()) == ["main", "used"]
    assert operators(after) == ["exp"]


def test_a_branch_on_a_constant_is_spliced_with_nested_ones() -> None:
    yes, no = as_constant(np.array(True)), as_constant(np.array(False))

    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((4,), "float32"):
            before = R.sin(x)
            if yes:
                if no:
                    a = R.exp(before)
                    y = a
                else:
                    if c:
                        b = R.tan(before)
                        z = b
                    else:
                        z = before
                    y = z
                r = y
            else:
                r = R.cos(before)
            out = R.negative(r)
            return out

    mod = Before
    after = apply("eliminate-dead-code", mod)
    assert operators(after) == ["sin", "tan", "negative"]
    x = np.linspace(-1, 1, 4, dtype="float32")
    for flag in (True, False):
        arguments = x, np.array(flag)
        np.testing.assert_array_equal(run_module(after, *arguments)[0], run_module(mod, *arguments)[0])


def test_a_match_cast_that_defines_a_symbol_in_use_stays() -> None:
    build = Build()
    x = build.input("x", ("n", "k"))
    rows = tvm.tirx.Var("rows", "int64")
    y = build.match(x, relax.TensorType([rows, 4], "float32"))
    out = build.emit(relax.op.zeros(relax.ShapeExpr([rows]), "float32"))
    del y
    mod = apply("eliminate-dead-code", build.module(out))
    np.testing.assert_array_equal(run_module(mod, np.ones((3, 4), "float32"))[0], np.zeros(3))


def test_equal_expressions_on_equal_constants_are_shared() -> None:
    w = np.random.default_rng(0).standard_normal((8, 8)).astype("float32")

    def module(other: np.ndarray) -> tvm.IRModule:
        build = Build()
        x = build.input("x", (2, 8))
        a = build.emit(relax.op.matmul(x, as_constant(w)))
        b = build.emit(relax.op.matmul(x, as_constant(other)))
        return build.module(build.emit(relax.op.exp(a)), build.emit(relax.op.exp(b)))

    assert operators(apply("eliminate-common-subexpressions", module(w.copy()))) == ["matmul", "exp"]
    different = w.copy()
    different[0, 0] = -different[0, 0]
    assert len(operators(apply("eliminate-common-subexpressions", module(different)))) == 4


def test_attributes_order_and_randomness_keep_expressions_apart() -> None:
    build = Build()
    x = build.input("x", (4, 4))
    y = build.input("y", (4, 4))
    op = relax.op
    calls = [op.sum(x, [0]), op.sum(x, [1]), op.subtract(x, y), op.subtract(y, x), op.astype(x, "int32")]
    calls += [op.astype(x, "int64"), op.nn.dropout(x), op.nn.dropout(x)]
    values = [build.emit(call) for call in calls]
    values[-2:] = [build.emit(relax.TupleGetItem(value, 0)) for value in values[-2:]]
    mod = build.module(*values)
    assert apply("eliminate-common-subexpressions", mod).same_as(mod)


def test_nothing_is_shared_out_of_a_branch() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((4,), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((4,), "float32"):
            if c:
                a = R.exp(x)
                r = R.negative(a)
            else:
                b = R.exp(x)
                r = b
            d = R.exp(x)
            out = R.add(r, d)
            return out

    for name in ("eliminate-common-subexpressions", "normalize"):
        after = apply("eliminate-common-subexpressions", apply("normalize", Before))
        assert operators(after).count("exp") == 3, name
