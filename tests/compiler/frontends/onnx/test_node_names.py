"""Names of nodes in terms that users know."""

from __future__ import annotations

import onnx
from onnx import helper, parser

from compiler.frontends.onnx import import_onnx
from compiler.frontends.onnx.node_names import model_node
from compiler.frontends.onnx.structure import describe


def _exported(operator: str, inputs: list[str], scopes: list[str], classes: list[str]) -> onnx.NodeProto:
    node = helper.make_node(operator, inputs, ["y"], name="node_7")
    for key, value in (("name_scopes", scopes), ("class_hierarchy", classes)):
        node.metadata_props.add(key=f"pkg.torch.onnx.{key}", value=str(value))
    return node


def test_a_node_is_known_by_its_name_or_its_first_output_or_the_function_it_is_part_of() -> None:
    assert model_node(helper.make_node("Relu", ["x"], ["y"], name="act/Relu")).name == "act/Relu"
    assert model_node(helper.make_node("Relu", ["x"], ["y"])).name == "y"
    assert model_node(helper.make_node("Relu", ["x"], ["y"]), "block_1") == ("block_1/y", "Relu")


def test_a_node_exported_from_torch_is_known_by_its_modules_path() -> None:
    block, conv, norm = "my.Block", "torch.nn.modules.conv.Conv2d", "torch.nn.modules.batchnorm.BatchNorm2d"
    one = _exported("Conv", ["x"], ["", "layer.0", "layer.0.conv", "conv2d"], ["my.Net", block, conv, "aten.conv2d"])
    assert model_node(one).name == "layer.0.conv"
    assert describe(one) == "Conv node 'layer.0.conv'"  # in errors too
    several = _exported("Add", ["x", "z"], ["", "layer.0", "add_3"], ["my.Net", block, "aten.add"])
    assert model_node(several).name == "layer.0.add_3"
    folded = _exported("Conv", ["x", "layer.0.conv1.weight"], ["", "layer.0.bn1", "bn"], ["my.Net", norm, "aten.bn"])
    assert model_node(folded).name == "layer.0.conv1"
    damaged = _exported("Relu", ["x"], ["layer"], [block, norm])
    assert model_node(damaged).name == "node_7"


def test_variables_of_an_imported_model_lead_back_to_its_nodes() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,3] x) => (float[2,3] y)'
        "{ [lv] a = Relu(x)  [a_b] c = Celu(a)  [lv] y = Neg(c) }"
    )
    imported = import_onnx(model)
    variables = [b.var.name for block in imported.mod["main"].body.blocks for b in block.bindings]
    named = [imported.nodes[each][0] for each in variables if each in imported.nodes]
    assert list(dict.fromkeys(named)) == [("lv", "Relu"), ("a_b", "Celu"), ("lv", "Neg")]
    assert not {"lv", "lv1"} & set(variables)  # names that TVM gives variables of its own
