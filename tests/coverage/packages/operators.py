"""PyTorch's operators on the inputs of PyTorch's own tests (needs the package `expecttest`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.coverage.packages.model import PackageModel

_SAMPLES = 2  # per operator: the first, and the middle one


def torch_operators() -> Iterator[PackageModel]:
    """All operators with inputs of float32, integers or booleans."""
    methods = importlib.import_module("torch.testing._internal.common_methods_invocations")
    for operator in methods.op_db:
        name = ".".join(filter(None, (operator.name, operator.variant_test_name)))
        for number in range(_SAMPLES):
            yield PackageModel(f"{name}/{number}", partial(_built, operator, number), dynamic=())


def _built(operator: Any, number: int) -> tuple[Any, tuple[Any, ...]]:
    """The operator as a module whose inputs are its tensor arguments; other arguments are constants."""
    import torch
    from torch.utils import _pytree

    dtype = next(each for each in (torch.float32, torch.int64, torch.bool) if each in operator.dtypes)
    samples = list(operator.sample_inputs("cpu", dtype, requires_grad=False))
    sample = samples[number * len(samples) // _SAMPLES]
    leaves, structure = _pytree.tree_flatten(((sample.input, *sample.args), sample.kwargs))
    places = [place for place, each in enumerate(leaves) if isinstance(each, torch.Tensor) and not each.is_complex()]
    tensors = tuple(leaves[place].detach().clone() for place in places)
    if not tensors:
        raise ValueError("it has no tensor among its arguments")

    class Operator(torch.nn.Module):
        def forward(self, *inputs: Any) -> Any:
            given = dict(zip(places, inputs, strict=True))
            arguments, keywords = _pytree.tree_unflatten(
                [given.get(place, each) for place, each in enumerate(leaves)], structure
            )
            results = _pytree.tree_leaves(operator.op(*arguments, **keywords))
            found = [each for each in results if isinstance(each, torch.Tensor)]
            return tuple(torch.view_as_real(each.resolve_conj()) if each.is_complex() else each for each in found)

    return Operator(), tensors
