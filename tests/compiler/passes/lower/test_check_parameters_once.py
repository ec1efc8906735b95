"""Checks of parameters move from `main` to a separate function and still refuse wrong parameters."""

# mypy: disable-error-code="valid-type, no-redef"

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

import compiler
import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
from compiler.artifact import Artifact
from compiler.artifact.entries import CHECK_ENTRY
from compiler.errors import ArtifactError, InputError
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.runtime import Module

import tvm  # isort: skip
from tvm import relax  # isort: skip
from tvm.script import ir as I  # isort: skip
from tvm.script import relax as R  # isort: skip


def _dense() -> tvm.IRModule:
    """y = x @ weight for x: float32[n, 4]."""
    size = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((size, 4), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            weight = relax.const(np.arange(20, dtype=np.float32).reshape(4, 5))
            result = builder.emit_output(relax.Tuple([builder.emit(relax.op.matmul(x, weight))]))
        builder.emit_func_output(result)
    return builder.get()


@I.ir_module
class _Branching:
    @R.function(private=True)
    def shifted(x: R.Tensor((4,), "float32")) -> R.Tensor((4,), "float32"):  # noqa: N805
        y: R.Tensor((4,), "float32") = R.add(x, R.const([1.0, 2.0, 3.0, 4.0], "float32"))
        return y

    @R.function
    def main(x: R.Tensor((4,), "float32"), c: R.Tensor((), "bool")) -> R.Tuple(R.Tensor((4,), "float32")):  # noqa: N805
        cls = _Branching
        if c:
            z: R.Tensor((4,), "float32") = cls.shifted(x)
        else:
            z: R.Tensor((4,), "float32") = R.multiply(x, R.const([5.0, 6.0, 7.0, 8.0], "float32"))
        return (z,)


def _checks(function: Any) -> int:
    return str(function).count("check_tensor_info")


def test_the_checks_move() -> None:
    result = run_pipeline(_dense(), PipelineContext())
    assert len(result.parameters) == 1
    assert _checks(result.mod["main"]) == 1  # of the input
    assert _checks(result.mod[CHECK_ENTRY]) == 1


def test_private_functions_lose_theirs() -> None:
    with_pass = run_pipeline(_Branching, PipelineContext())
    without = run_pipeline(_Branching, PipelineContext(), passes={"instead-of:check-parameters-once": None})
    assert _checks(without.mod["shifted"]) == 2
    assert _checks(with_pass.mod["shifted"]) == 0
    module = compiler.compile(_Branching)
    x = np.arange(4, dtype=np.float32)
    for condition, expected in ((True, x + [1, 2, 3, 4]), (False, x * [5, 6, 7, 8])):
        (result,) = module.run([x, np.array(condition)]).values()
        np.testing.assert_array_equal(result, expected)


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return compiler.compile(_dense()).artifact


def test_inputs_are_still_checked(artifact: Artifact) -> None:
    module = Module(artifact)
    (y,) = module.run([np.ones((2, 4), np.float32)]).values()
    assert y.shape == (2, 5)
    with pytest.raises(InputError):
        module.run([np.ones((2, 3), np.float32)])


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[:, :-1],
        lambda a: a.reshape(-1),
        lambda a: a.astype(np.float64),
        lambda a: a[:0],
        lambda a: a.T[:1].T,
    ],
    ids=["narrower", "rank", "type", "empty", "column"],
)
def test_parameters_that_do_not_fit_are_refused_when_loading(artifact: Artifact, change: Any) -> None:
    ((name, weight),) = artifact.parameters.items()
    wrong = np.ascontiguousarray(change(np.asarray(weight)))
    described = msgspec.structs.replace(artifact.manifest.parameters[0], shape=wrong.shape, dtype=str(wrong.dtype))
    manifest = msgspec.structs.replace(artifact.manifest, parameters=(described,))
    with pytest.raises(ArtifactError, match="do not fit its code"):
        Module(replace(artifact, parameters={name: wrong}, manifest=manifest))
