"""The pipeline: order, insertion by name, errors that name the pass, dumps that can be read back, verification."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.ir import IRModule

from compiler.errors import OptionError, PassError, VerificationError
from compiler.passes import pipeline
from compiler.passes.context import PipelineContext
from compiler.passes.pipeline import build_phases, run_pipeline
from compiler.passes.registry import as_graph_pass, get_pass, graph_pass
from compiler.passes.verify import compare
from tests.compiler.passes.building import Build, run_module
from tests.unoptimized import unoptimized_machine


def model() -> IRModule:
    """relu(x @ w + b) with weights of 8 by 8."""
    build = Build()
    x = build.input("x", (2, 8))
    y = build.emit(relax.op.matmul(x, build.constant((8, 8))))
    y = build.emit(relax.op.add(y, build.constant((8,))))
    return build.module(build.emit(relax.op.nn.relu(y)))


def test_runs_to_code_with_parameters_outside_and_agrees_with_the_plain_build() -> None:
    mod = model()
    x = np.random.default_rng(0).standard_normal((2, 8)).astype("float32")
    result = run_pipeline(mod)
    assert [value.shape for value in result.parameters.values()] == [(8, 8), (8,)]
    machine = unoptimized_machine(result.mod, relax_pipeline=None)
    got = machine["main"](*map(tvm.runtime.tensor, [x, *result.parameters.values()]))
    np.testing.assert_allclose(got[0].numpy(), run_module(mod, x)[0], rtol=1e-6)
    assert result.timings[0].name == "normalize"
    assert result.seconds() >= result.seconds("fuse") > 0


def test_a_users_pass_goes_before_after_or_instead_of_a_pass_or_phase() -> None:
    seen: list[str] = []

    def note(name: str) -> Any:
        def my_pass(mod: IRModule) -> IRModule:
            seen.append(name)
            return mod

        return my_pass

    changes = {
        "before:normalize": note("first"),
        "after:canonicalize": note("second"),
        "instead-of:apply-schedules": note("third"),
        "after:lower": tvm.transform.module_pass(lambda mod, _: note("fourth")(mod), opt_level=0, name="engine"),
        "instead-of:fold-lowered-constants": None,
    }
    result = run_pipeline(model(), passes=changes)
    assert seen == ["first", "second", "third", "fourth"]
    names = [timing.name for timing in result.timings]
    assert names[0] == "my-pass"
    assert names[-1] == "engine"
    assert "fold-lowered-constants" not in names


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"after:normalise": lambda mod: mod}, "did you mean 'normalize'"),
        ({"behind:normalize": lambda mod: mod}, "before:NAME"),
        ({"after:normalize": None}, "instead-of"),
        ({"after:normalize": 3}, "is not a pass"),
        ({"after:normalize": "eliminate-dead-cod"}, "did you mean 'eliminate-dead-code'"),
    ],
)
def test_a_wrong_change_says_what_is_right(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        run_pipeline(model(), passes=changes)
    with pytest.raises(OptionError, match="did you mean 'canonicalize'"):
        run_pipeline(model(), until="canonicalise")


def test_an_engine_error_names_the_pass_and_keeps_the_message() -> None:
    def broken(mod: IRModule) -> IRModule:
        relax.op.matmul(mod, mod)
        return mod

    with pytest.raises(PassError, match=r"pass 'broken' \(phase 'canonicalize'\) failed: TypeError"):
        run_pipeline(model(), passes={"after:normalize": broken})


def unbind(mod: IRModule) -> IRModule:
    """A pass that makes the module ill-formed."""
    main = mod["main"]
    copy = mod.clone()
    body = relax.SeqExpr([], main.body.body)
    copy.update_func(mod.get_global_var("main"), relax.Function(main.params, body, main.ret_ty, attrs=main.attrs))
    return copy


def test_an_ill_formed_module_names_the_pass() -> None:
    with pytest.raises(PassError, match=r"pass 'unbind'.*not well formed"):
        run_pipeline(model(), passes={"after:normalize": unbind})


def test_a_pass_of_the_project_that_breaks_a_module_is_named_whatever_runs_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "is_own", lambda _: True)
    with pytest.raises(PassError, match=r"pass 'unbind'.*not well formed"):
        run_pipeline(model(), passes={"after:normalize": unbind})


def double_constants(mod: IRModule) -> IRModule:
    """A pass that changes numbers."""
    from compiler.passes.rewriting.matching import array_of, as_constant
    from compiler.passes.rewriting.substitution import replace_leaves

    main = mod["main"]

    def doubled(leaf: Any) -> Any:
        return as_constant(2 * array_of(leaf)) if isinstance(leaf, tvm.ir.GenericConst) else leaf

    copy = mod.clone()
    body = replace_leaves(main.body, doubled)
    copy.update_func(mod.get_global_var("main"), relax.Function(main.params, body, main.ret_ty, attrs=main.attrs))
    return relax.transform.Normalize()(copy)


@pytest.mark.parametrize("place", ["after:normalize", "after:fuse-kernels", "before:lift-parameters"])
def test_verify_names_the_pass_that_changed_a_number(place: str) -> None:
    with pytest.raises(VerificationError, match=r"pass 'double-constants'.*changed output 0"):
        run_pipeline(model(), passes={place: double_constants}, verify=True)


def test_verify_accepts_what_is_right_and_refuses_inputs_that_do_not_fit() -> None:
    x = np.ones((2, 8), "float32")
    run_pipeline(model(), verify=True, example_inputs=[x])
    with pytest.raises(OptionError, match="example_inputs"):
        run_pipeline(model(), verify=True, example_inputs=[x[:, :4].copy()])


def test_compare_is_strict_on_nan_infinity_integers_and_types() -> None:
    a = np.array([1.0, np.nan, np.inf], "float32")
    assert compare(a, a) is None
    assert "NaN or infinity" in str(compare(a, np.array([1.0, np.nan, -np.inf], "float32")))
    assert "by" in str(compare(a, np.array([1.1, np.nan, np.inf], "float32")))
    assert "1 of 2" in str(compare(np.array([1, 2]), np.array([1, 3])))
    assert "expected" in str(compare(a, a.astype("float64")))


def test_dump_writes_numbered_files_that_parse_and_hold_no_large_constant(tmp_path: Path) -> None:
    run_pipeline(model(), dump=tmp_path / "dump", until="fuse")
    files = sorted((tmp_path / "dump").iterdir())
    assert files[0].name == "00-import-import.py"
    assert files[1].name == "01-canonicalize-normalize.py"
    assert all(file.stat().st_size < 20_000 for file in files)
    names = list({file.read_bytes(): file.stem for file in files}.values())
    # In a process of its own: importing files is slow where thousands of modules are loaded.
    program = (
        "import importlib, sys, schedules.ir.load_tvm\n"
        "for name in sys.argv[1:]:\n"
        "    print(len(importlib.import_module(name).Module['main'].params))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *names], cwd=tmp_path / "dump", capture_output=True, text=True
    )
    assert done.stdout.split() == ["3"] * len(names), done.stderr


def test_every_pass_has_a_name_a_summary_and_its_place_can_be_looked_up() -> None:
    for phase in build_phases(PipelineContext()):
        for each in phase.passes:
            assert each.summary
            assert get_pass(each.name) is each
    with pytest.raises(OptionError, match="exists already"):
        graph_pass("normalize", summary="another")(lambda mod, _context: mod)


def test_a_graph_pass_is_a_tvm_pass_too() -> None:
    mod = tvm.transform.Sequential([get_pass("normalize").as_tvm_pass()])(model())
    assert mod["main"].params[0].name == "x"
    assert as_graph_pass("normalize") is get_pass("normalize")


def test_a_transpose_passes_a_function_that_was_spelled_out() -> None:
    """As in exported GELU functions (SegFormer), whose arithmetic uses its input twice."""
    build = Build()
    turned = build.emit(relax.op.permute_dims(build.input("x", (2, 8, 16)), [0, 2, 1]))
    scaled = build.emit(relax.op.multiply(turned, relax.const(np.float32(0.5**0.5))))
    curve = build.emit(relax.op.add(build.emit(relax.op.erf(scaled)), relax.const(np.float32(1))))
    half = build.emit(relax.op.multiply(turned, relax.const(np.float32(0.5))))
    mod = build.module(build.emit(relax.op.multiply(half, curve)))

    expected = Build()
    gelu = expected.emit(relax.op.nn.gelu(expected.input("x", (2, 8, 16))))
    after = expected.module(expected.emit(relax.op.permute_dims(gelu, [0, 2, 1])))
    tvm.ir.assert_structural_equal(run_pipeline(mod, until="canonicalize").mod, after)
