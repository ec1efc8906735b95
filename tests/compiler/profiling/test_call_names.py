"""Matching the calls of a run with the manifest's list of calls."""

from __future__ import annotations

import pytest

from compiler.artifact.manifest import CallList
from compiler.profiling.instrument import DYNAMIC_CALL, Call
from compiler.profiling.profile import named_calls

_LISTED = CallList(
    nodes=("conv1", "relu1", "conv2", "yes", "no", "last", "step"),
    callees=("conv", "matmul", "body", "copy"),
    functions={
        "main": [[0, 0, 1], [0, 2], [[[1, 3]], [[1, 4], [1, 4]]], [2], [1, 5]],
        "body": [[1, 6]],
    },
)


def _call(name: str, parent: int | None = None) -> Call:
    return Call(name, {}, {}, (), 0 if parent is None else 1, parent)


def _named(*names: str | tuple[str, int]) -> list[tuple[str, ...]]:
    calls = [_call(each) if isinstance(each, str) else _call(*each) for each in names]
    return [each.nodes for each in named_calls(calls, _LISTED)]


def test_calls_of_one_kernel_are_told_apart_by_their_order() -> None:
    found = _named("vm.builtin.alloc", "conv", "conv", "matmul", "matmul", "body", ("matmul", 5), "matmul")
    assert found == [(), ("conv1", "relu1"), ("conv2",), ("no",), ("no",), (), ("step",), ("last",)]


def test_the_branch_taken_is_the_one_whose_calls_were_made() -> None:
    found = _named("conv", "conv", "matmul", "body", ("matmul", 3), ("matmul", 3), "matmul")
    assert found == [("conv1", "relu1"), ("conv2",), ("yes",), (), ("step",), (), ("last",)]


def test_kernels_with_dynamic_sizes_get_their_names() -> None:
    calls = named_calls([_call(DYNAMIC_CALL), _call("conv")], _LISTED)
    assert [(each.kernel, each.nodes) for each in calls] == [("conv", ("conv1", "relu1")), ("conv", ("conv2",))]


def test_calls_within_functions_that_passes_made_belong_to_the_caller() -> None:
    assert _named("captured", ("conv", 0), ("conv", 0)) == [(), ("conv1", "relu1"), ("conv2",)]


def test_calls_that_are_not_listed_have_no_nodes_and_disturb_none() -> None:
    assert _named("conv", "copy", "shape_func", "conv") == [("conv1", "relu1"), (), (), ("conv2",)]
    assert [each.nodes for each in named_calls([_call("conv")], None)] == [()]


@pytest.mark.parametrize("steps", [[[9]], [[0, 9]], [[0, -1]], [[]], [0], [[[[0]]]], [[[], [], []]], [[True]]])
def test_a_list_that_refers_to_nothing_is_refused(steps: list[object]) -> None:
    with pytest.raises(ValueError, match=r"call|step|branches"):
        CallList(nodes=("a",), callees=("b",), functions={"main": steps})  # type: ignore[dict-item]


def test_branches_nested_without_end_are_refused() -> None:
    steps: list[object] = [[0]]
    for _ in range(100):
        steps = [[steps, []]]
    with pytest.raises(ValueError, match=r"call|step|branches"):
        CallList(nodes=(), callees=("b",), functions={"main": steps})  # type: ignore[dict-item]
