"""`Side`: the interface through which `compare` runs a model and its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

Array = np.ndarray


class Side(Protocol):
    """A model in two runtimes. Values are tensors inside of it, by name, in the order of its nodes.

    Attributes:
        model: its name.
        reference: name of the other runtime.
        outputs: names of its results.
        values: names of all values that nodes compute.
        nodes: the node that computes a value, as text.
        operands: names of the values and inputs that this node reads.
        example: inputs by name, numpy arrays.
    """

    @property
    def model(self) -> str: ...
    @property
    def reference(self) -> str: ...
    @property
    def outputs(self) -> Sequence[str]: ...
    @property
    def values(self) -> Sequence[str]: ...
    @property
    def nodes(self) -> Mapping[str, str]: ...
    @property
    def operands(self) -> Mapping[str, Sequence[str]]: ...
    @property
    def example(self) -> Mapping[str, Array]: ...

    def ours(self, names: Sequence[str]) -> dict[str, Array]:
        """Compute these values with a module compiled to return only them."""

    def theirs(self, names: Sequence[str]) -> dict[str, Array]:
        """Compute these values with the reference."""
