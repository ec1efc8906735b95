"""The `onnx.backend` interface: `prepare(model, device).run(inputs)`, `run_model`, `run_node`, `supports_device`.

    import compiler.onnx_backend as backend
    outputs = backend.prepare(model, "CPU").run([x])

A model some of whose inputs must be known when compiling (the number of outputs of a Split, a list of tensors) is
compiled when it is first run, with the values given then, and again for other values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
from onnx.backend.base import Backend, BackendRep, namedtupledict

from compiler.errors import InputError, InputValueRequiredError, OptionError, Refusal, UnsupportedModelError, type_text
from compiler.frontends.onnx import dtypes
from compiler.frontends.onnx.node_names import shown_name
from compiler.frontends.onnx.structure import RANDOM_OPERATORS, all_nodes
from compiler.frontends.onnx.values import Constant

Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
Compile = Callable[..., Run]
_MAX_CACHED = 64


def compile_to_run(model: onnx.ModelProto, **options: Any) -> Run:
    """Compile with `tensorwright.compile`; the result takes and gives arrays by name."""
    from compiler.driver.compile import compile

    refusals = [
        Refusal(node.op_type, shown_name(node), "its output is random, so it cannot match the output that ONNX stores")
        for node in all_nodes(model)
        if node.op_type in RANDOM_OPERATORS
    ]
    if refusals:
        raise UnsupportedModelError(
            refusals, "tensorwright.compile draws numbers of its own, with the same distribution"
        )
    return compile(model, **{"progress": None, **options}).run


class TensorwrightRep(BackendRep):
    """A prepared model."""

    def __init__(self, model: onnx.ModelProto, compile_model: Compile, options: Mapping[str, Any]) -> None:
        graph = model.graph
        initialized = {tensor.name for tensor in graph.initializer}
        self._model = model
        self._compile = compile_model
        self._options = dict(options)
        self._inputs = [spec for spec in graph.input if spec.name not in initialized]
        self._outputs = [spec.name for spec in graph.output]
        self._fixed = {spec.name for spec in self._inputs if not _is_run_time_tensor(spec)}
        tensors = [spec for spec in self._inputs if spec.name not in self._fixed]
        self._unranked = [spec.name for spec in tensors if not spec.type.tensor_type.HasField("shape")]
        self._compiled: dict[bytes, Run] = {}
        if not self._fixed and not self._unranked:
            self._try_without_values()

    def _try_without_values(self) -> None:
        """Compile now when no input's value is needed, so that refusals come from `prepare`."""
        try:
            self._compiled[self._key({})] = self._compile(self._model, **self._options)
        except InputValueRequiredError as error:
            self._fixed.update(error.inputs)

    def run(self, inputs: object, **kwargs: object) -> tuple[Any, ...]:
        """Run on inputs in order, or by name; returns the outputs as a named tuple."""
        feeds = self._feeds(inputs)
        run = self._compiled_for(feeds)
        results = run({name: np.asarray(value) for name, value in feeds.items() if name not in self._fixed})
        return namedtupledict("Outputs", self._outputs)(*(results[name] for name in self._outputs))

    def _feeds(self, inputs: Any) -> dict[str, Any]:
        if isinstance(inputs, Mapping):
            return dict(inputs)
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if len(inputs) > len(self._inputs):
            raise InputError(f"{len(inputs)} inputs are given, the model takes {len(self._inputs)}")
        return {spec.name: value for spec, value in zip(self._inputs, inputs, strict=False)}

    def _compiled_for(self, feeds: dict[str, Any]) -> Run:
        """The model compiled with the fixed inputs' values; finds out which those are."""
        while True:
            missing = self._fixed - feeds.keys()
            if missing:
                raise InputError(f"the model needs values of the inputs {sorted(missing)}")
            key = self._key(feeds)
            if key in self._compiled:
                return self._compiled[key]
            constants = {name: feeds[name] for name in sorted(self._fixed)}
            shapes = {
                name: np.shape(feeds[name]) for name in self._unranked if name not in self._fixed and name in feeds
            }
            try:
                run = self._compile(self._model, constants=constants, shapes=shapes, **self._options)
            except InputValueRequiredError as error:
                if self._fixed.issuperset(error.inputs):
                    raise
                self._fixed.update(error.inputs)
                continue
            if len(self._compiled) >= _MAX_CACHED:
                self._compiled.pop(next(iter(self._compiled)))
            self._compiled[key] = run
            return run

    def _key(self, feeds: Mapping[str, Any]) -> bytes:
        digest = hashlib.sha256(repr(sorted(self._fixed)).encode())
        for name in sorted(self._fixed):
            _digest(feeds.get(name), digest)
        for name in self._unranked:
            digest.update(repr(np.shape(feeds.get(name, ()))).encode())
        return digest.digest()


def _digest(value: Any, digest: Any) -> None:
    if isinstance(value, (list, tuple)):
        digest.update(f"list of {len(value)}".encode())
        for item in value:
            _digest(item, digest)
        return
    array = np.asarray(value)
    digest.update(f"{array.dtype}{array.shape}".encode())
    digest.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())


def _is_run_time_tensor(spec: onnx.ValueInfoProto) -> bool:
    if spec.type.WhichOneof("value") != "tensor_type":
        return False
    name = dtypes.dtype_name(spec.type.tensor_type.elem_type)
    return name is None or dtypes.is_carried(name)


class TensorwrightBackend(Backend):
    """Tensorwright as an `onnx.backend` backend."""

    compile_model: Callable[..., Run] = staticmethod(compile_to_run)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True if models can be run on that device: "CPU", or "CPU:0"."""
        return device.split(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: object) -> bool:
        """True if every operator of the model is supported on that device."""
        from compiler.frontends.onnx.coverage import coverage_report

        return cls.supports_device(device) and coverage_report(model).complete

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: object) -> TensorwrightRep:
        """Compile a model; `kwargs` are options of `tensorwright.compile`.

        Raises OptionError for a device other than the CPU or a model that is not an `onnx.ModelProto`, and whatever
        `tensorwright.compile` raises.
        """
        if not isinstance(model, onnx.ModelProto):
            raise OptionError(f"{type_text(model)} is not an onnx.ModelProto", "load it first: onnx.load(path)")
        if not cls.supports_device(device):
            raise OptionError(f"device {device!r} is not supported", "use device='CPU'")
        return TensorwrightRep(model, cls.compile_model, kwargs)

    @classmethod
    def run_model(
        cls, model: onnx.ModelProto, inputs: object, device: str = "CPU", **kwargs: object
    ) -> tuple[Any, ...]:
        """Compile and run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays, in opset `opset_version` (default: the newest)."""
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
        names = [name for name in node.input if name]
        arrays = [np.asarray(value) for value in values]
        specs = [_spec(name, array) for name, array in zip(names, arrays, strict=True)]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = onnx.helper.make_graph([node], "node", specs, outputs)
        imports = [onnx.helper.make_opsetid(node.domain, opset)]
        model = onnx.helper.make_model(graph, opset_imports=imports)
        return cls.run_model(model, arrays, device, **kwargs)


def _spec(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, dtypes.NUMBERS[Constant(array).dtype], array.shape)


supports_device = TensorwrightBackend.supports_device
is_compatible = TensorwrightBackend.is_compatible
prepare = TensorwrightBackend.prepare
run_model = TensorwrightBackend.run_model
run_node = TensorwrightBackend.run_node
