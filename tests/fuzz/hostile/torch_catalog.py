"""PyTorch functions with dynamic shapes as subjects of the hostile suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz.hostile.catalog import Feeds, Form, Run, Subject, TorchSource, typed


@dataclass(frozen=True)
class Torch:
    """A function and its inputs.

    Attributes:
        function: called with a tensor for each name of `good`, in order; imports torch when called.
        modules: creates modules (layers) that are passed before the tensors.
        good: valid inputs. All axes are dynamic except those in `static`.
        hidden: the inputs whose values the operator computes with; another form hides them from checks at entry.
    """

    operator: str
    function: Callable[..., Any]
    good: Feeds
    hostile: Sequence[tuple[str, Feeds]]
    hidden: Sequence[str] = ()
    static: Mapping[str, Sequence[int]] | None = None
    modules: Callable[[], Sequence[Any]] | None = None

    def subjects(self) -> Iterator[Subject]:
        """The subject with these inputs, and with `hidden` ones computed in the module."""
        forms: list[Form] = ["input", "computed"] if self.hidden else ["input"]
        for form in forms:
            extra = {} if form == "input" else {f"zero_{name}": self._zero(name) for name in self.hidden}
            runs = tuple(
                Run(label, {**self.good, **typed(feeds, self.good), **extra})
                for label, feeds in [("good", {}), *self.hostile]
            )
            yield Subject(f"torch {self.operator}", form, _Source(self, form), {**self.good, **extra}, runs, "torch")

    def _zero(self, name: str) -> Any:
        return np.zeros(1, self.good[name].dtype)

    def source(self, form: Form) -> TorchSource:
        """The module, its example inputs and dynamic shapes."""
        import torch
        from torch.export import Dim

        names = list(self.good)
        torch.manual_seed(0)
        layers = list(self.modules()) if self.modules is not None else []
        examples = {name: torch.from_numpy(np.array(array)) for name, array in self.good.items()}
        shapes: dict[str, Any] = {}
        for name, example in examples.items():
            fixed = (self.static or {}).get(name, ())
            shapes[name] = {axis: Dim.AUTO for axis in range(example.ndim) if axis not in fixed}
        if form != "input":
            for name in self.hidden:
                examples[f"zero_{name}"] = torch.from_numpy(self._zero(name))
                shapes[f"zero_{name}"] = {}
        module = _module(self.function, layers, names, self.hidden if form != "input" else ())
        return TorchSource(module.eval(), tuple(examples.values()), shapes)


@dataclass(frozen=True)
class _Source:
    subject: Torch
    form: Form

    def __call__(self) -> TorchSource:
        return self.subject.source(self.form)


def _module(function: Callable[..., Any], layers: list[Any], names: list[str], hidden: Sequence[str]) -> Any:
    """A module whose `forward` has arguments with these names: `torch.export` names inputs after them."""
    import torch

    class Hostile(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(layers)

        def compute(self, *tensors: Any) -> Any:
            given = dict(zip(names, tensors, strict=False))
            zeros = dict(zip(hidden, tensors[len(names) :], strict=True))
            values = [given[name] + zeros[name] if name in zeros else given[name] for name in names]
            return function(*self.layers, *values)

    arguments = ", ".join([*names, *(f"zero_{name}" for name in hidden)])
    scope: dict[str, Any] = {}
    exec(f"def forward(self, {arguments}):\n    return self.compute({arguments})\n", scope)
    Hostile.forward = scope["forward"]
    return Hostile()
