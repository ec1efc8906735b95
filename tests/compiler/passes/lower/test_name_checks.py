"""name-checks: the message of a failing check is the frontend's description of it."""

from __future__ import annotations

from typing import Any

from tvm import relax
from tvm.ir import StringImm

import targets
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.passes.registry import get_pass
from tests.compiler.passes.building import Build

op = relax.op


def lowered(described: tuple[str, ...]) -> Any:
    """Two checks of the shape of y, lowered."""
    build = Build()
    x, y = build.input("x", ("n", 4)), build.input("y", ("m", 4))
    unknown = build.match(y, relax.TensorType(dtype="float32", ndim=2))
    checked = relax.DataflowVar("check_1_", x.ty)
    build._bindings.append(relax.MatchCast(checked, unknown, x.ty))
    mod = build.module(build.emit(op.add(x, checked)))
    target = targets.get("host")
    return run_pipeline(
        mod, PipelineContext(target=target, machine=target.machine, options=PassOptions(checks=described))
    ).mod


def texts(mod: Any) -> list[str]:
    """Messages of the checks of match_casts."""
    found: list[str] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, StringImm) and "param" not in expr.value and "return" not in expr.value:
            found.append(str(expr.value))

    relax.analysis.post_order_visit(mod["main"], visit)
    return [text for text in found if text.startswith(("ErrorContext", "tensorwright"))]


def test_the_check_before_a_variable_gets_its_text() -> None:
    assert texts(lowered(("Other node", "Add node 'z'"))) == ["tensorwright[Add node 'z'] "]


def test_without_descriptions_nothing_changes() -> None:
    mod = lowered(())
    assert texts(mod)[0].startswith("ErrorContext(match_cast")
    assert get_pass("name-checks")(mod).same_as(mod)
    assert texts(lowered(("only one",)))[0].startswith("ErrorContext(match_cast")
