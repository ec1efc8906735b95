"""Nodes of the model that the calls of a kernel compute."""

from __future__ import annotations

from compiler.support.model_nodes import Branches, Call, ModelNode, Step, nodes_of


def test_nodes_of_all_calls_of_a_kernel_are_named_once() -> None:
    first, second, third = (ModelNode(name, "Conv") for name in ("conv1", "conv2", "conv3"))
    branches = Branches((Call("conv", (second, first)),), (Call("other", (third,)),))
    functions: dict[str, tuple[Step, ...]] = {"main": (Call("conv", (first,)), branches), "body": (Call("add", ()),)}
    assert nodes_of("conv", functions) == ["conv1", "conv2"]
    assert nodes_of("other", functions) == ["conv3"]
    assert nodes_of("unknown", functions) == []
