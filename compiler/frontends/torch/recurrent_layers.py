"""`torch.nn.LSTM`, `GRU` and `RNN` of dynamic length.

torch.export traces their steps one by one, which makes the length a number. While a model is captured, they call
operators of our own with the same arguments, which become ONNX's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

_NAMESPACE = "tensorwright"
_PARAMETERS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first"
)


@dataclass(frozen=True)
class _Layer:
    """A function of `torch._VF`: its operator of ONNX, ONNX's gates by their numbers in torch, and attributes."""

    operator: str
    gates: tuple[int, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def has_cell(self) -> bool:
        """True if its state is a list of h and c."""
        return self.operator == "LSTM"


_LAYERS = {
    "lstm": _Layer("LSTM", (0, 3, 1, 2)),
    "gru": _Layer("GRU", (1, 0, 2), {"linear_before_reset": 1}),
    "rnn_tanh": _Layer("RNN", (0,)),
    "rnn_relu": _Layer("RNN", (0,), {"activations": ["Relu"]}),
}
_LIBRARIES: list[Any] = []  # operators last as long as the library that defines them
OPERATORS = tuple(f"{_NAMESPACE}.{name}.default" for name in _LAYERS)


@contextmanager
def recurrent_layers_captured() -> Iterator[None]:
    """While it lasts, recurrent layers of dynamic length are captured as one operator each."""
    import torch

    functions: Any = torch._VF
    operators = _registered()
    originals = {name: getattr(functions, name) for name in _LAYERS}
    try:
        for name, original in originals.items():
            setattr(functions, name, _captured(original, operators[name]))
        yield
    finally:
        for name in _LAYERS:
            delattr(functions, name)  # looked up again where torch has it


def _captured(original: Callable[..., Any], operator: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        if not isinstance(arguments[3], bool):  # a packed sequence
            return original(*arguments)
        length: Any = arguments[0].shape[1 if arguments[-1] else 0]  # a symbol where it is dynamic
        hidden = arguments[2][1].shape[-1]
        projects = isinstance(arguments[1], tuple) and arguments[1][0].shape[-1] != arguments[1][1].shape[-1]
        if isinstance(length, int) or not isinstance(hidden, int) or projects:
            return original(*arguments)
        return operator(*arguments)

    return call


@cache
def _registered() -> dict[str, Callable[..., Any]]:
    """The operators by name, defined once per process."""
    import torch

    libraries: Any = torch.library
    library = libraries.Library(_NAMESPACE, "FRAGMENT")
    _LIBRARIES.append(library)
    for name, layer in _LAYERS.items():
        state, results = ("Tensor[] hx", 3) if layer.has_cell else ("Tensor hx", 2)
        outputs = ", ".join(["Tensor"] * results)
        library.define(f"{name}(Tensor x, {state}, {_PARAMETERS}) -> ({outputs})")
        library.impl(name, getattr(torch, name), "CompositeExplicitAutograd")
        libraries.register_fake(f"{_NAMESPACE}::{name}", _shapes(layer), lib=library)
    return {name: getattr(getattr(torch.ops, _NAMESPACE), name).default for name in _LAYERS}


def _shapes(layer: _Layer) -> Callable[..., Any]:
    """Empty results of the shapes that the operator gives."""

    def fake(x: Any, hx: Any, params: Any, *options: Any) -> Any:
        states = list(hx) if layer.has_cell else [hx]
        directions = 2 if options[-2] else 1
        output = x.new_empty((*x.shape[:2], directions * states[0].shape[-1]))
        return output, *(state.new_empty(state.shape) for state in states)

    return fake


def translation(name: str) -> Callable[..., Any]:
    """ONNX conversion of the operator, for the exporter's `custom_translation_table`."""
    layer = _LAYERS[name.split(".")[1]]

    def convert(
        x: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        from onnxscript import opset18

        states = list(hx) if layer.has_cell else [hx]
        directions, each = (2 if bidirectional else 1), (4 if has_biases else 2)
        x = opset18.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        last: list[list[Any]] = [[] for _ in states]
        for number in range(num_layers):
            first = number * directions
            initial = [opset18.Slice(state, [first], [first + directions], [0]) for state in states]
            own = [list(params[each * d : each * (d + 1)]) for d in range(first, first + directions)]
            x, *final = _layer(layer, x, own, initial)
            for collected, state in zip(last, final, strict=True):
                collected.append(state)
        x = opset18.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return x, *(opset18.Concat(*found, axis=0) for found in last)

    return convert


def _layer(layer: _Layer, x: object, params: list[list[Any]], initial: list[Any]) -> list[Any]:
    """One layer of one or two directions: (output (length, batch, directions * hidden), last states)."""
    from onnxscript import opset18

    hidden = int(params[0][1].shape[1])

    def in_order(value: object) -> Any:
        gates = [opset18.Slice(value, [gate * hidden], [(gate + 1) * hidden], [0]) for gate in layer.gates]
        return opset18.Concat(*gates, axis=0)

    def stacked(values: list[Any]) -> Any:
        return opset18.Concat(*(opset18.Unsqueeze(value, [0]) for value in values), axis=0)

    weights = [stacked([in_order(own[index]) for own in params]) for index in range(2)]
    bias = None
    if len(params[0]) == 4:
        bias = stacked([opset18.Concat(in_order(own[2]), in_order(own[3]), axis=0) for own in params])
    attributes = {**layer.attributes, "hidden_size": hidden}
    if len(params) == 2:
        attributes["direction"] = "bidirectional"
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * len(params)
    y, *last = getattr(opset18, layer.operator)(x, *weights, bias, None, *initial, **attributes)
    moved = opset18.Transpose(y, perm=[0, 2, 1, 3])
    return [opset18.Reshape(moved, [0, 0, len(params) * hidden]), *last]
