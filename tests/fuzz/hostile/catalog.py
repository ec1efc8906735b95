"""Models of the hostile suite and their inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Form = Literal["input", "computed", "nested"]


@dataclass(frozen=True)
class Run:
    """One set of inputs."""

    label: str
    feeds: Feeds


@dataclass(frozen=True)
class Subject:
    """A model, compiled once, and its inputs.

    Attributes:
        operator: the operator under test.
        form: source of the operator's values: model inputs, computed, or computed in a branch inside a loop.
        source: creates the model: an `onnx.ModelProto` or a `TorchSource`.
        good: valid inputs, which the compiler stores as the reference run.
    """

    operator: str
    form: Form
    source: Callable[[], Any]
    good: Feeds
    runs: tuple[Run, ...]
    frontend: Literal["onnx", "torch"] = "onnx"

    @property
    def name(self) -> str:
        return self.operator if self.form == "input" else f"{self.operator} ({self.form})"


@dataclass(frozen=True)
class TorchSource:
    """Arguments of `compiler.compile` for a PyTorch model, and the names of its inputs in order."""

    module: Any
    example: tuple[Any, ...]
    dynamic_shapes: Any


node = helper.make_node


def ints(*values: int) -> Array:
    """int64, one axis."""
    return np.array(values, np.int64)


def scalar(value: Any, dtype: str = "int64") -> Array:
    """An array of rank 0."""
    return np.array(value, dtype)


def floats(*shape: int) -> Array:
    """Normal numbers, the same for the same shape."""
    return np.random.default_rng(abs(hash(shape)) % 2**32).standard_normal(shape).astype(np.float32)


def hostile_indices(size: int) -> list[int]:
    """Indices into an axis of a size: at and beyond its ends, and where arithmetic overflows."""
    near = [-size - 1, -size, -1, size - 1, size, size + 1]
    far = [-(10**18), -(10**6), 10**6, 2**31 - 1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1, -(2**31)]
    return list(dict.fromkeys(near + far))


def hostile_sizes() -> list[int]:
    """Negative and huge sizes."""
    return [-(2**63), -(10**18), -5, -1, 0, 1, 10**6, 10**9, 2**31, 2**32, 2**61, 2**62, 2**63 - 1]


def clamped(values: Sequence[int], dtype: str) -> list[int]:
    """The values that the type can represent."""
    limits = np.iinfo(dtype)
    return [value for value in values if limits.min <= value <= limits.max]


def placed(good: Array, values: Sequence[int], name: str) -> list[tuple[str, Feeds]]:
    """`good` filled with each value, and with some values only in its last element."""
    result: list[tuple[str, Feeds]] = []
    for position, value in enumerate(clamped(values, str(good.dtype))):
        everywhere = np.full_like(good, value)
        result.append((f"{name}={value}", {name: everywhere}))
        if good.size > 1 and position % 3 == 0:
            last = good.copy()
            last.reshape(-1)[-1] = value
            result.append((f"{name}[-1]={value}", {name: last}))
    return result


def typed(feeds: Feeds, good: Feeds) -> Feeds:
    """The arrays, cast to the types of the valid inputs."""
    return {name: np.asarray(array, good[name].dtype) for name, array in feeds.items()}


@dataclass(frozen=True)
class Onnx:
    """A small ONNX model and its inputs; `subjects` creates it in several forms.

    Attributes:
        good: valid inputs, by name.
        hostile: a label and the inputs that replace valid ones.
        hidden: the inputs whose values the operator computes with; other forms hide them from checks at entry.
        dims: shapes of the inputs, unless every dimension is a separate symbolic one.
        outputs: element types by name.
    """

    operator: str
    nodes: Sequence[onnx.NodeProto]
    good: Feeds
    hostile: Sequence[tuple[str, Feeds]]
    hidden: Sequence[str] = ()
    dims: Mapping[str, Sequence[int | str]] | None = None
    outputs: Mapping[str, str] | None = None
    constants: Feeds | None = None
    opset: int = 21
    domains: Sequence[str] = ()

    def subjects(self) -> Iterator[Subject]:
        """The model with these inputs; with `hidden` ones computed in it; and with the operator nested as well."""
        forms: list[Form] = ["input", "computed", "nested"] if self.hidden else ["input"]
        for form in forms:
            runs = tuple(
                Run(label, {**self.good, **typed(feeds, self.good)}) for label, feeds in [("good", {}), *self.hostile]
            )
            extra = {} if form == "input" else {f"zero_{name}": self._zero(name) for name in self.hidden}
            yield Subject(
                self.operator,
                form,
                _Source(self, form),
                {**self.good, **extra},
                tuple(Run(run.label, {**run.feeds, **extra}) for run in runs),
            )

    def _zero(self, name: str) -> Array:
        return np.zeros((), self.good[name].dtype)

    def model(self, form: Form) -> onnx.ModelProto:
        """The model in one of its forms."""
        inputs = [_value(name, array, (self.dims or {}).get(name)) for name, array in self.good.items()]
        outputs = [_output(name, dtype) for name, dtype in (self.outputs or {"y": "float32"}).items()]
        constants = [numpy_helper.from_array(array, name) for name, array in (self.constants or {}).items()]
        nodes = list(self.nodes)
        if form != "input":
            inputs += [_value(f"zero_{name}", self._zero(name), []) for name in self.hidden]
            renamed = {name: f"hidden_{name}" for name in self.hidden}
            hiding = [node("Add", [name, f"zero_{name}"], [new]) for name, new in renamed.items()]
            nodes = [_renamed(each, renamed) for each in nodes]
            if form == "nested":
                nodes = _in_loop(_in_branch(nodes, outputs, constants), outputs)
            nodes = [*hiding, *nodes]
        graph = helper.make_graph(nodes, "hostile", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(each, 1) for each in self.domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@dataclass(frozen=True)
class _Source:
    graph: Onnx
    form: Form

    def __call__(self) -> onnx.ModelProto:
        return self.graph.model(self.form)


def _value(name: str, array: Array, dims: Sequence[int | str] | None) -> onnx.ValueInfoProto:
    shape = [f"{name}{axis}" for axis in range(array.ndim)] if dims is None else list(dims)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape)


def _output(name: str, dtype: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)


def _renamed(each: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(each)
    del copy.input[:]
    copy.input.extend(names.get(name, name) for name in each.input)
    return copy


def _in_branch(
    nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto], constants: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """The nodes in both branches of an If whose condition is an input's size."""
    names = [each.name for each in outputs]

    def branch(suffix: str) -> onnx.GraphProto:
        renamed = {name: f"{name}{suffix}" for each in nodes for name in each.output}
        inner = []
        for each in nodes:
            copy = _renamed(each, renamed)
            del copy.output[:]
            copy.output.extend(renamed[name] for name in each.output)
            inner.append(copy)
        results = [
            helper.make_tensor_value_info(renamed[each.name], each.type.tensor_type.elem_type, None) for each in outputs
        ]
        return helper.make_graph(inner, f"branch{suffix}", [], results)

    first = next(name for each in nodes for name in each.input if name and name not in {c.name for c in constants})
    return [
        node("Size", [first], ["size_of_first"]),
        node("Constant", [], ["three"], value=numpy_helper.from_array(scalar(3), "three_value")),
        node("Greater", ["size_of_first", "three"], ["condition"]),
        node("If", ["condition"], names, then_branch=branch("_then"), else_branch=branch("_else")),
    ]


def _in_loop(nodes: list[onnx.NodeProto], outputs: list[onnx.ValueInfoProto]) -> list[onnx.NodeProto]:
    """The nodes in the body of a Loop that runs once; outputs get an additional axis."""
    inner = {name: f"{name}_inner" for each in nodes for name in each.output}
    copies = []
    for each in nodes:
        copy = _renamed(each, inner)
        del copy.output[:]
        copy.output.extend(inner[name] for name in each.output)
        copies.append(copy)
    truth = helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, [])
    again = helper.make_tensor_value_info("go_on_out", onnx.TensorProto.BOOL, [])
    turn = helper.make_tensor_value_info("turn", onnx.TensorProto.INT64, [])
    results = [helper.make_tensor_value_info(inner[o.name], o.type.tensor_type.elem_type, None) for o in outputs]
    body = helper.make_graph(
        [node("Identity", ["go_on"], ["go_on_out"]), *copies], "body", [turn, truth], [again, *results]
    )
    return [
        node("Constant", [], ["trips"], value=numpy_helper.from_array(scalar(1), "trips_value")),
        node("Constant", [], ["always"], value=numpy_helper.from_array(np.array(True), "always_value")),
        node("Loop", ["trips", "always"], [each.name for each in outputs], body=body),
    ]
