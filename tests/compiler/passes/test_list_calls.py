"""The nodes of the model that each call of a kernel computes, after all graph passes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, parser

import targets
from compiler.driver.manifest_entries import call_list
from compiler.frontends.onnx import import_onnx
from compiler.passes.context import PassOptions, PipelineContext
from compiler.passes.pipeline import run_pipeline
from compiler.profiling.attribution import names_of
from compiler.support.model_nodes import Branches, Call, Step


def _model(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.uniform(0.5, 1.0, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def _calls(model: onnx.ModelProto, target: str = "x86-64-v3") -> dict[str, tuple[Step, ...]]:
    imported = import_onnx(model)
    described = targets.get(target)
    options = PassOptions(nodes=imported.nodes)
    context = PipelineContext(target=described, machine=described.machine, options=options)
    return run_pipeline(imported.mod, context, until="plan-memory").report.calls


def _nodes(steps: tuple[Step, ...]) -> list[tuple[str, ...]]:
    return [names_of(each.nodes) for each in steps if isinstance(each, Call)]


_BLOCKS = """(float[N,16,8,8] x) => (float[N,16,8,8] y) {
    [conv1] a = Conv<pads=[1,1,1,1]>(x, w1)  [bn1] b = BatchNormalization(a, s, s, s, s)  [relu1] c = Relu(b)
    [conv2] d = Conv<pads=[1,1,1,1]>(c, w2)  [bn2] e = BatchNormalization(d, s, s, s, s)  [relu2] f = Relu(e)
    [add] y = Add(f, x)
}"""


def test_equal_kernels_have_the_nodes_of_each_call() -> None:
    for batch in ("2", "N"):
        model = _model(_BLOCKS.replace("[N", f"[{batch}"), w1=(16, 16, 3, 3), w2=(16, 16, 3, 3), s=(16,))
        listed = [nodes for nodes in _nodes(_calls(model)["main"]) if nodes]
        covered = [node for nodes in listed for node in nodes]
        assert {"conv1", "bn1", "relu1", "conv2", "bn2", "relu2", "add"} == set(covered)
        first, second = (next(nodes for nodes in listed if each in nodes) for each in ("conv1", "conv2"))
        assert first[:2] == ("conv1", "bn1")
        assert second[:2] == ("conv2", "bn2")


def test_a_recognized_function_has_the_nodes_it_was_written_in() -> None:
    model = _model(
        "(float[4,32] x) => (float[4,32] y) <float two = {2.0}> {"
        "[mean] m = ReduceMean<axes=[1]>(x) [center] c = Sub(x, m)"
        "[square] q = Pow(c, two) [var] v = ReduceMean<axes=[1]>(q)"
        "[eps] e = Add(v, small) [root] r = Sqrt(e)"
        "[divide] n = Div(c, r) [scale] k = Mul(n, w) [shift] y = Add(k, w) }",
        small=(),
        w=(32,),
    )
    (nodes,) = _nodes(_calls(model)["main"])
    assert {"mean", "var", "divide", "scale"} <= set(nodes)


def test_branches_and_functions_have_their_own_calls() -> None:
    model = _model(
        """(float[4,4] x, bool c) => (float[4,4] y) {
        [choice] b = If (c) <then_branch = t () => (float[4,4] p) { [yes] p = MatMul(x, w) },
                             else_branch = e () => (float[4,4] q) { [no] q = MatMul(w, x) }>
        [last] y = MatMul(b, w) }""",
        w=(4, 4),
    )
    calls = _calls(model)
    named = {nodes for steps in calls.values() for nodes in _nodes(steps)}
    assert {("yes",), ("no",), ("last",)} <= named
    assert any(isinstance(each, Branches) for each in calls["main"])


def test_the_manifests_list_is_the_same_each_time_and_names_the_main_node_first() -> None:
    model = _model(_BLOCKS.replace("[N", "[2"), w1=(16, 16, 3, 3), w2=(16, 16, 3, 3), s=(16,))
    listed, again = call_list(_calls(model)), call_list(_calls(model))
    assert listed is not None
    assert listed == again
    firsts = [listed.nodes[step[1]] for step in listed.functions["main"] if len(step) > 1]  # type: ignore[arg-type,index]
    assert {"conv1", "conv2"} <= set(firsts)
