"""Random ONNX graphs with symbolic input sizes: a graph is valid at many sizes, and run at several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.fuzz.minimize import names_read

OPSET = 21
SYMBOLS = ("n", "m", "k")
SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17)
LARGEST = max(SIZES)
MAX_ELEMENTS = 1 << 15
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40], np.float32)

Dim = int | str
"""A number, a symbol of the inputs, or the text of what is computed from them: equal texts are equal sizes."""
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Tensor:
    """A value of the graph.

    Attributes:
        exact: bit for bit equal in every runtime, so that thresholds and positions may be computed from it.
        bounded: floats that stay small, so that functions like exp are safe.
    """

    name: str
    shape: Shape
    dtype: str = "float32"
    exact: bool = False
    bounded: bool = True

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Body:
    """A graph under construction: the main one, or a branch or loop body, which can use outer values."""

    tensors: list[Tensor] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)


@dataclass
class SymbolicBuilder:
    """A graph under construction.

    Attributes:
        random: the source of every choice.
        special: True if inputs contain NaN, infinities and zeros of both signs.
        estimates: upper bound of each computed size, by its text.
    """

    random: np.random.Generator
    special: bool = False
    inputs: dict[str, tuple[Shape, str]] = field(default_factory=dict)
    initializers: dict[str, NDArray[Any]] = field(default_factory=dict)
    estimates: dict[str, int] = field(default_factory=dict)
    bodies: list[Body] = field(default_factory=lambda: [Body()])
    names: int = 0

    @property
    def body(self) -> Body:
        return self.bodies[-1]

    def fresh(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}_{self.names}"

    def add_input(self, shape: Shape, dtype: str = "float32") -> Tensor:
        name = self.fresh("x")
        self.inputs[name] = (shape, dtype)
        tensor = Tensor(name, shape, dtype, exact=True)
        self.body.tensors.append(tensor)
        return tensor

    def constant(self, value: Any, dtype: str | None = None) -> str:
        """An initializer's name; Python numbers are float32 or int64."""
        array = np.asarray(value, dtype)
        if dtype is None and array.dtype == np.float64:
            array = array.astype(np.float32)
        name = self.fresh("c")
        self.initializers[name] = array
        return name

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        results: Sequence[Tensor | None],
        domain: str = "",
        **attributes: Any,
    ) -> list[Tensor]:
        """Append a node; its outputs, given without names, join the pool."""
        made = [Tensor(self.fresh("v"), t.shape, t.dtype, t.exact, t.bounded) if t else None for t in results]
        names = [t.name if t else "" for t in made]
        label = self.fresh(operator)
        self.body.nodes.append(helper.make_node(operator, list(inputs), names, name=label, domain=domain, **attributes))
        found = [tensor for tensor in made if tensor is not None]
        self.body.tensors.extend(found)
        return found

    def like(self, tensor: Tensor, shape: Shape | None = None, **changes: Any) -> Tensor:
        """A result with an operand's properties."""
        fields = {"dtype": tensor.dtype, "exact": tensor.exact, "bounded": tensor.bounded, **changes}
        return Tensor("", tensor.shape if shape is None else shape, **fields)

    def estimate(self, dim: Dim) -> int:
        return dim if isinstance(dim, int) else self.estimates.get(dim, LARGEST)

    def size(self, text: str, estimate: int) -> str:
        """A computed size."""
        self.estimates[text] = max(estimate, 0)
        return text

    def fits(self, shape: Shape) -> bool:
        """True if a tensor of this shape is small enough at all sizes."""
        product = 1
        for dim in shape:
            product *= max(self.estimate(dim), 1)
        return product <= MAX_ELEMENTS and len(shape) <= 5

    def pick(
        self,
        dtype: str = "float32",
        ranks: tuple[int, int] = (0, 5),
        exact: bool = False,
        bounded: bool = False,
        shape: Shape | None = None,
    ) -> Tensor | None:
        """A random value in scope, later ones more often; None if nothing fits."""
        fitting = [
            tensor
            for body in self.bodies
            for tensor in body.tensors
            if tensor.dtype == dtype
            and ranks[0] <= tensor.rank <= ranks[1]
            and (tensor.exact or not exact)
            and (tensor.bounded or not bounded)
            and (shape is None or tensor.shape == shape)
        ]
        if not fitting:
            return None
        position = int(len(fitting) * np.sqrt(self.random.random()))
        return fitting[min(position, len(fitting) - 1)]

    def integer(self, low: int, high: int) -> int:
        """A random integer in [low, high]."""
        return int(self.random.integers(low, high + 1))

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.random.random() < probability)

    def choice(self, options: Sequence[Any]) -> Any:
        return options[self.integer(0, len(options) - 1)]

    def uniform(self, low: float, high: float, shape: Sequence[int] = ()) -> NDArray[np.float32]:
        return np.asarray(self.random.uniform(low, high, tuple(shape)), np.float32)

    def model(self) -> onnx.ModelProto:
        """The graph as a model; its outputs are at most four values that no node reads."""
        read = {name for node in self.body.nodes for name in names_read(node)}
        made = [tensor for tensor in self.body.tensors if tensor.name not in self.inputs]
        outputs = [tensor for tensor in made if tensor.name not in read][-4:]
        graph = helper.make_graph(
            self.body.nodes,
            "symbolic",
            [
                helper.make_tensor_value_info(name, element_type(dtype), list(shape))
                for name, (shape, dtype) in self.inputs.items()
            ],
            [helper.make_tensor_value_info(t.name, element_type(t.dtype), [None] * t.rank) for t in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def feeds(self) -> dict[str, NDArray[Any]]:
        """Inputs for one run, at random sizes."""
        sizes = {symbol: int(self.choice(SIZES)) for symbol in SYMBOLS}
        return {name: self._values(shape, dtype, sizes) for name, (shape, dtype) in self.inputs.items()}

    def _values(self, shape: Shape, dtype: str, sizes: dict[str, int]) -> NDArray[Any]:
        known = tuple(dim if isinstance(dim, int) else sizes[dim] for dim in shape)
        if dtype == "bool":
            return self.random.integers(0, 2, known).astype(bool)
        if dtype != "float32":
            return self.random.integers(-5, 6, known).astype(dtype)
        values = self.uniform(-2, 2, known)
        if self.special and values.size:
            chosen = self.random.random(known) < 0.1
            values = np.where(chosen, self.random.choice(SPECIAL, known), values).astype(np.float32)
        return values


def element_type(dtype: str) -> int:
    """The number of an element type in ONNX."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
