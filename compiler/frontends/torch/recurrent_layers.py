"""`torch.nn.LSTM`, `GRU` and `RNN` over sequences of dynamic length, and over packed sequences.

torch.export traces their steps one by one, which fixes the length, and does not support packed sequences. While a model
is captured, the layers call custom operators with the same arguments, which become ONNX's operators. A packed sequence
is represented by the padded tensor, time first, and the lengths (1, batch): models that read its parts are rejected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError
from compiler.frontends.torch.composite_functions import replaced

if TYPE_CHECKING:
    from torch import Tensor

_NAMESPACE = "tensorwright"
_PARAMETERS = (
    "Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, "
    "bool batch_first, Tensor? lengths=None"
)


@dataclass(frozen=True)
class _Layer:
    """A function of `torch._VF`: its ONNX operator, the torch gate index of each ONNX gate, and attributes."""

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
_LIBRARIES: list[Any] = []  # operators exist as long as the library that defines them
OPERATORS = tuple(f"{_NAMESPACE}.{name}.default" for name in _LAYERS)


@contextmanager
def recurrent_layers_captured() -> Iterator[None]:
    """Context in which recurrent layers over dynamic lengths or packed sequences are captured as one operator each."""
    import torch

    functions: Any = torch._VF
    layers = (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN)
    with replaced(
        [
            *((functions, name, partial(_captured, operator)) for name, operator in _registered().items()),
            (functions, "_pack_padded_sequence", _packed),
            (functions, "_pad_packed_sequence", _padded),
            (torch.nn.utils.rnn, "PackedSequence", _guarded),
            *((layer, "forward", _of_packed_sequences) for layer in layers),
        ]
    ):
        yield


def _captured(operator: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        length: Any = arguments[0].shape[1 if arguments[-1] else 0]  # a symbol if dynamic
        hidden = arguments[2][1].shape[-1]
        projects = isinstance(arguments[1], tuple) and arguments[1][0].shape[-1] != arguments[1][1].shape[-1]
        if isinstance(length, int) or not isinstance(hidden, int) or projects:
            return original(*arguments)
        return operator(*arguments)

    return call


def _guarded(original: Any) -> Any:
    """Return the class of packed sequences, whose parts only PyTorch and this module may read."""

    def check() -> None:
        reader = sys._getframe(2).f_globals["__name__"]
        if reader != __name__ and not reader.startswith("torch."):
            raise UnsupportedModelError(
                [Refusal("PackedSequence", reader, "the model reads its parts, which are not packed here")],
                "compute on the result of pad_packed_sequence",
            )

    def part(number: int) -> property:
        def read(self: Any) -> Any:
            check()
            return tuple.__getitem__(self, number)

        return property(read)

    class PackedSequence(original):
        def __iter__(self) -> Iterator[Any]:
            check()
            return tuple.__iter__(self)

        def __getitem__(self, at: Any) -> Any:
            check()
            return tuple.__getitem__(self, at)

    for number, name in enumerate(original._fields):
        setattr(PackedSequence, name, part(number))
    return PackedSequence


def _packed(_: Callable[..., Any]) -> Callable[..., Any]:
    def pack(input: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Tensor, Tensor]:
        return (input.transpose(0, 1) if batch_first else input), lengths.unsqueeze(0)

    return pack


def _padded(_: Callable[..., Any]) -> Callable[..., Any]:
    """Pad; `total` is 1, the first size of the lengths, if the result has as many steps as the longest sequence."""

    def pad(data: Tensor, lengths: Tensor, batch_first: bool, padding: float, total: Any) -> tuple[Tensor, Tensor]:
        import torch

        check: Any = torch._check
        if isinstance(total, int) and total == 1:
            total = lengths.max().item()
            check(total >= 1)
            check(total <= data.shape[0])
            data = data[:total]
        else:
            data = torch.nn.functional.pad(data, (0, 0, 0, 0, 0, total - data.shape[0]))
        if padding:
            beyond = torch.arange(data.shape[0]).unsqueeze(1) >= lengths
            data = data.masked_fill(beyond.unsqueeze(2), padding)
        return (data.transpose(0, 1) if batch_first else data), lengths[0]

    return pad


def _of_packed_sequences(original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: Any, input: Any, hx: Any = None) -> Any:
        from torch.nn.utils.rnn import PackedSequence

        if not isinstance(input, PackedSequence) or self.proj_size:
            return original(self, input, hx)
        data, lengths, order, back = input
        has_cell = self.mode == "LSTM"
        if hx is None:
            layers = self.num_layers * (2 if self.bidirectional else 1)
            hx = data.new_zeros(layers, data.shape[1], self.hidden_size)
            hx = (hx, hx) if has_cell else hx
        else:
            hx = self.permute_hidden(hx, order)
        options = (self.bias, self.num_layers, 0.0, False, self.bidirectional, False)
        operator = _registered()[self.mode.lower()]
        output, *last = operator(data, hx, self._flat_weights, *options, lengths[0])
        last = self.permute_hidden(tuple(last) if has_cell else last[0], back)
        return PackedSequence(output, lengths, order, back), last

    return forward


@cache
def _registered() -> dict[str, Callable[..., Any]]:
    """Return the operators by name, defined once per process."""
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
    """Empty results with the shapes that the operator returns."""

    def fake(x: Any, hx: Any, params: Any, *options: Any) -> Any:
        states = list(hx) if layer.has_cell else [hx]
        directions = 2 if options[4] else 1
        output = x.new_empty((*x.shape[:2], directions * states[0].shape[-1]))
        return output, *(state.new_empty(state.shape) for state in states)

    return fake


def translation(name: str) -> Callable[..., Any]:
    """Return the ONNX conversion of the operator, for the exporter's `custom_translation_table`."""
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
        lengths: Any = None,
    ) -> Any:
        from onnxscript import opset18

        states = list(hx) if layer.has_cell else [hx]
        directions, per_direction = (2 if bidirectional else 1), (4 if has_biases else 2)
        x = opset18.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        lengths = None if lengths is None else opset18.Cast(lengths, to=6)  # INT32
        last: list[list[Any]] = [[] for _ in states]
        for number in range(num_layers):
            first = number * directions
            initial = [opset18.Slice(state, [first], [first + directions], [0]) for state in states]
            weights = [
                list(params[per_direction * d : per_direction * (d + 1)]) for d in range(first, first + directions)
            ]
            x, *final = _layer(layer, x, weights, initial, lengths)
            for collected, state in zip(last, final, strict=True):
                collected.append(state)
        x = opset18.Transpose(x, perm=[1, 0, 2]) if batch_first else x
        return x, *(opset18.Concat(*found, axis=0) for found in last)

    return convert


def _layer(layer: _Layer, x: object, params: list[list[Any]], initial: list[Any], lengths: Any) -> list[Any]:
    """Emit one layer with one or two directions: (output (length, batch, directions * hidden), last states)."""
    from onnxscript import opset18

    hidden = int(params[0][1].shape[1])

    def in_order(value: object) -> Any:
        gates = [opset18.Slice(value, [gate * hidden], [(gate + 1) * hidden], [0]) for gate in layer.gates]
        return opset18.Concat(*gates, axis=0)

    def stacked(values: list[Any]) -> Any:
        return opset18.Concat(*(opset18.Unsqueeze(value, [0]) for value in values), axis=0)

    weights = [stacked([in_order(part[index]) for part in params]) for index in range(2)]
    bias = None
    if len(params[0]) == 4:
        bias = stacked([opset18.Concat(in_order(part[2]), in_order(part[3]), axis=0) for part in params])
    attributes = {**layer.attributes, "hidden_size": hidden}
    if len(params) == 2:
        attributes["direction"] = "bidirectional"
    if "activations" in attributes:
        attributes["activations"] = attributes["activations"] * len(params)
    y, *last = getattr(opset18, layer.operator)(x, *weights, bias, lengths, *initial, **attributes)
    moved = opset18.Transpose(y, perm=[0, 2, 1, 3])
    return [opset18.Reshape(moved, [0, 0, len(params) * hidden]), *last]
