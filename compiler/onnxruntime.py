"""The Python interface of ONNX Runtime over compiled modules, for code that was written for it.

    import tensorwright.onnxruntime as onnxruntime

or, for packages that import `onnxruntime` themselves, before they do:

    tensorwright.onnxruntime.install()

A session compiles its model once (`tensorwright.compile`, which keeps modules between processes) and runs on the
processor. Options that change results or that ask for something else (profiling, other providers, custom operator
libraries) are refused; those that only steer how ONNX Runtime optimizes have no effect.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import compiler
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import (
    InputError,
    InvalidModelError,
    OptionError,
    StorageError,
    TensorwrightError,
    UnsupportedModelError,
)

Array = np.ndarray
CPU = "CPUExecutionProvider"
VERSION = "1.20.0"
"""The version of ONNX Runtime's interface that this module follows."""
__version__ = VERSION

_INNER = ("capi", "capi._pybind_state", "capi.onnxruntime_pybind11_state", "capi.onnxruntime_inference_collection")
"""Modules inside ONNX Runtime from which packages import the same names."""

# ONNX Runtime's exceptions, for code that catches them.
Fail = RuntimeException = EPFail = TensorwrightError
InvalidArgument = InputError
InvalidGraph = InvalidProtobuf = InvalidModelError
NoSuchFile = StorageError
NotImplemented = UnsupportedModelError

_TYPES = {
    "bool": "bool",
    "float16": "float16",
    "float32": "float",
    "float64": "double",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "float8e4m3fn",
    "float8_e4m3fnuz": "float8e4m3fnuz",
    "float8_e5m2": "float8e5m2",
    "float8_e5m2fnuz": "float8e5m2fnuz",
    **{name: name for bits in (4, 8, 16, 32, 64) for name in (f"int{bits}", f"uint{bits}")},
}


class GraphOptimizationLevel(IntEnum):
    """Has no effect: models are always optimized."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(IntEnum):
    """Has no effect: a run uses all its threads for one kernel after another."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


@dataclass
class SessionOptions:
    """Options of a session.

    Attributes:
        intra_op_num_threads: threads of a run; 0: all cores.
        enable_profiling: True is refused; `tensorwright.profile` shows where the time goes.
        compile_options: keyword arguments of `tensorwright.compile`, an addition to ONNX Runtime's interface.
    """

    intra_op_num_threads: int = 0
    inter_op_num_threads: int = 0
    graph_optimization_level: int = GraphOptimizationLevel.ORT_ENABLE_ALL
    execution_mode: int = ExecutionMode.ORT_SEQUENTIAL
    execution_order: int = 0
    enable_cpu_mem_arena: bool = True
    enable_mem_pattern: bool = True
    enable_mem_reuse: bool = True
    enable_profiling: bool = False
    use_deterministic_compute: bool = False
    optimized_model_filepath: str = ""
    profile_file_prefix: str = ""
    logid: str = ""
    log_severity_level: int = 2
    log_verbosity_level: int = 0
    compile_options: dict[str, Any] = field(default_factory=dict)
    _entries: dict[str, str] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keep an entry; none has an effect."""
        self._entries[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """The value of an entry. Raises OptionError where there is none."""
        if key not in self._entries:
            raise OptionError(f"no session configuration {key!r} was set")
        return self._entries[key]

    def has_session_config_entry(self, key: str) -> bool:
        return key in self._entries

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Compile for one size of a symbolic dimension."""
        self._sizes[name] = size

    def register_custom_ops_library(self, path: str) -> None:
        """Raises OptionError: operators of shared libraries cannot be compiled."""
        raise OptionError(
            f"{path}: libraries of custom operators are not supported", "see tensorwright.register_onnx_operator"
        )

    def check(self) -> None:
        """Raise OptionError for what is not supported."""
        if self.enable_profiling:
            raise OptionError("enable_profiling is not supported", "use tensorwright.profile")
        if self.optimized_model_filepath:
            raise OptionError("optimized_model_filepath is not supported", "use tensorwright.compile(...).export")


@dataclass
class RunOptions:
    """Options of a run; none has an effect."""

    log_severity_level: int = 2
    log_verbosity_level: int = 0
    logid: str = ""
    only_execute_path_to_fetches: bool = False
    terminate: bool = False

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Take an entry; none has an effect."""


@dataclass(frozen=True)
class NodeArg:
    """An input or output: its name, its shape (ints, and names of symbolic dimensions), its type ("tensor(float)")."""

    name: str
    shape: list[int | str]
    type: str


@dataclass(frozen=True)
class ModelMetadata:
    """Metadata of an ONNX file."""

    producer_name: str = ""
    graph_name: str = ""
    graph_description: str = ""
    domain: str = ""
    description: str = ""
    version: int = 0
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


class OrtValue:
    """A tensor in the memory of the processor."""

    def __init__(self, array: Array) -> None:
        self._array = array

    @staticmethod
    def ortvalue_from_numpy(array: Array, device_type: str = "cpu", device_id: int = 0) -> OrtValue:
        _check_device(device_type)
        return OrtValue(np.ascontiguousarray(array))

    @staticmethod
    def ortvalue_from_shape_and_type(
        shape: Sequence[int], element_type: object, device_type: str = "cpu", device_id: int = 0
    ) -> OrtValue:
        _check_device(device_type)
        return OrtValue(np.zeros(tuple(shape), _dtype(element_type)))

    def numpy(self) -> Array:
        return self._array

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def data_type(self) -> str:
        return f"tensor({_TYPES[str(self._array.dtype)]})"

    def element_type(self) -> int:
        """The number of the element type in ONNX's TensorProto."""
        from onnx import helper

        return int(helper.np_dtype_to_tensor_dtype(self._array.dtype))

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)

    def device_name(self) -> str:
        return "cpu"

    def is_tensor(self) -> bool:
        return True

    def has_value(self) -> bool:
        return True

    def update_inplace(self, array: Array) -> None:
        np.copyto(self._array, array, casting="no")


class IOBinding:
    """Inputs and outputs of a run in memory of the caller's."""

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array | None] = {}
        self._results: list[OrtValue] = []

    def bind_cpu_input(self, name: str, array: Array) -> None:
        self._inputs[name] = array

    def bind_ortvalue_input(self, name: str, value: OrtValue) -> None:
        self._inputs[name] = value.numpy()

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: object, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Bind memory by its address; the caller keeps it alive."""
        _check_device(device_type)
        self._inputs[name] = _array_at(buffer_ptr, element_type, shape)

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: object = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Bind memory by its address; without one, the run makes the output."""
        _check_device(device_type)
        self._outputs[name] = None if buffer_ptr is None else _array_at(buffer_ptr, element_type, shape or ())

    def bind_ortvalue_output(self, name: str, value: OrtValue) -> None:
        self._outputs[name] = value.numpy()

    def run(self) -> None:
        names = list(self._outputs) or [each.name for each in self._session.get_outputs()]
        given = {name: array for name, array in self._outputs.items() if array is not None}
        found = self._session.module.run(self._inputs, out=given) if given else self._session.module.run(self._inputs)
        self._results = [OrtValue(found[name]) for name in names]

    def get_outputs(self) -> list[OrtValue]:
        return self._results

    def copy_outputs_to_cpu(self) -> list[Array]:
        return [value.numpy() for value in self._results]

    def clear_binding_inputs(self) -> None:
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        self._outputs.clear()
        self._results = []

    def synchronize_inputs(self) -> None:
        """Do nothing: all is on the processor."""

    def synchronize_outputs(self) -> None:
        """Do nothing: all is on the processor."""


class InferenceSession:
    """A compiled ONNX model behind ONNX Runtime's interface.

    Attributes:
        module: the `tensorwright.Module`.
    """

    def __init__(
        self,
        path_or_bytes: str | bytes | os.PathLike[str],
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, Mapping[str, object]]] | None = None,
        provider_options: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> None:
        """Compile a model, or load what was compiled before.

        Args:
            path_or_bytes: an .onnx file, or its bytes.
            providers: None, or a list that names CPUExecutionProvider.

        Raises:
            OptionError: an option or a provider is not supported.
            UserError: as `tensorwright.compile`.
        """
        if kwargs.keys() - {"disabled_optimizers", "enable_fallback", "read_config_from_model"}:
            raise OptionError(f"InferenceSession takes no {', '.join(sorted(kwargs))}")
        self._options = sess_options if sess_options is not None else SessionOptions()
        self._options.check()
        _check_providers(providers)
        self._source: Path | bytes = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes)
        threads = self._options.intra_op_num_threads or None
        options: dict[str, Any] = {"threads": threads, "progress": None, **self._options.compile_options}
        if self._options._sizes:
            options["shapes"] = _overridden(self._source, self._options._sizes)
        self.module = compiler.compile(self._source, **options)
        self._inputs = [_node_arg(each) for each in self.module.inputs]
        self._types = {each.name: ELEMENT_TYPES[each.dtype].numpy for each in self.module.inputs}
        self._outputs = [_node_arg(each) for each in self.module.outputs]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: RunOptions | None = None
    ) -> list[Array]:
        """Run on inputs by name; returns the outputs of these names, all when None.

        Raises:
            InputError: an input or an output has no such name, or an input does not fit.
        """
        outputs = self.module.run(self._feed(input_feed))
        if output_names is None:
            return list(outputs.values())
        unknown = [name for name in output_names if name not in outputs]
        if unknown:
            raise InputError(f"no output is named {unknown[0]!r}", f"the outputs are {', '.join(outputs)}")
        return [outputs[name] for name in output_names]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[Sequence[Array] | None, object, str], None],
        user_data: object,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run on another thread, which then calls `callback(results, user_data, error)`."""
        names = [each.name for each in self._outputs] if output_names is None else list(output_names)
        future = self.module.submit(self._feed(input_feed))

        def done(finished: Any) -> None:
            error = finished.exception()
            if error is not None:
                callback(None, user_data, str(error))
                return
            found = finished.result()
            callback([found[name] for name in names], user_data, "")

        future.add_done_callback(done)

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict: Mapping[str, OrtValue], run_options: object = None
    ) -> list[OrtValue]:
        feed = {name: value.numpy() for name, value in input_dict.items()}
        return [OrtValue(array) for array in self.run(output_names, feed)]

    def _feed(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Lists and numbers as arrays of the input's type; objects with memory of their own stay as they are."""
        feed: dict[str, Any] = {}
        for name, value in feeds.items():
            if isinstance(value, OrtValue):
                feed[name] = value.numpy()
            elif isinstance(value, list | tuple | int | float | bool):
                feed[name] = np.asarray(value, self._types.get(name))
            else:
                feed[name] = value
        return feed

    def io_binding(self) -> IOBinding:
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        iobinding.run()

    def get_inputs(self) -> list[NodeArg]:
        return self._inputs

    def get_outputs(self) -> list[NodeArg]:
        return self._outputs

    def get_overridable_initializers(self) -> list[NodeArg]:
        return []

    def get_modelmeta(self) -> ModelMetadata:
        """Metadata of the file, which is read again."""
        model = _parsed(self._source)
        return ModelMetadata(
            producer_name=model.producer_name,
            graph_name=model.graph.name,
            graph_description=model.graph.doc_string,
            domain=model.domain,
            description=model.doc_string,
            version=model.model_version,
            custom_metadata_map={each.key: each.value for each in model.metadata_props},
        )

    def get_providers(self) -> list[str]:
        return [CPU]

    def set_providers(self, providers: Sequence[Any] | None = None, provider_options: object = None) -> None:
        _check_providers(providers)

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CPU: {}}

    def get_session_options(self) -> SessionOptions:
        return self._options


def get_available_providers() -> list[str]:
    return [CPU]


def get_all_providers() -> list[str]:
    return [CPU]


def get_device() -> str:
    return "CPU"


def set_default_logger_severity(level: int) -> None:
    """Do nothing: sessions log nothing."""


def set_default_logger_verbosity(level: int) -> None:
    """Do nothing: sessions log nothing."""


def disable_telemetry_events() -> None:
    """Do nothing: nothing is sent."""


def install() -> None:
    """Make `import onnxruntime` give this module, in this process, for packages that are imported from here on."""
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None and loaded is not sys.modules[__name__]:
        raise OptionError("onnxruntime was imported before", "call install() first")
    this_module = sys.modules[__name__]
    sys.modules["onnxruntime"] = this_module
    for name in _INNER:
        sys.modules[f"onnxruntime.{name}"] = this_module
        setattr(this_module, name.rpartition(".")[2], this_module)


def _node_arg(spec: Any) -> NodeArg:
    return NodeArg(spec.name, list(spec.shape), f"tensor({_TYPES.get(spec.dtype, spec.dtype)})")


def _check_providers(providers: Sequence[str | tuple[str, Mapping[str, object]]] | None) -> None:
    names = [each if isinstance(each, str) else each[0] for each in providers or [CPU]]
    if CPU not in names:
        raise OptionError(f"{', '.join(names)}: this session runs on the processor", f"add {CPU!r} to providers")


def _check_device(name: str) -> None:
    if name not in ("cpu", "Cpu"):
        raise OptionError(f"device {name!r}: this session runs on the processor", 'use "cpu"')


def _dtype(element_type: object) -> np.dtype[Any]:
    """A NumPy data type for a type of NumPy's, or the number of one in ONNX's TensorProto."""
    if isinstance(element_type, int):
        from onnx import helper

        return np.dtype(helper.tensor_dtype_to_np_dtype(element_type))
    if element_type == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(element_type)  # type: ignore[call-overload]


def _array_at(address: int, element_type: object, shape: Sequence[int]) -> Array:
    dtype = _dtype(element_type)
    nbytes = prod(shape) * dtype.itemsize
    memory = (ctypes.c_char * nbytes).from_address(address)
    return np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(tuple(shape))


def _overridden(source: Path | bytes, sizes: Mapping[str, int]) -> dict[str, tuple[int | str, ...]]:
    """Shapes of the inputs with these sizes of symbolic dimensions."""
    model = _parsed(source)
    names = {tensor.name for tensor in model.graph.initializer}
    shapes: dict[str, tuple[int | str, ...]] = {}
    for value in model.graph.input:
        if value.name not in names and any(each.dim_param in sizes for each in value.type.tensor_type.shape.dim):
            shapes[value.name] = tuple(
                each.dim_value or sizes.get(each.dim_param, each.dim_param or f"{value.name}_{axis}")
                for axis, each in enumerate(value.type.tensor_type.shape.dim)
            )
    return shapes


def _parsed(source: Path | bytes) -> Any:
    import onnx

    model = onnx.ModelProto()
    model.ParseFromString(source if isinstance(source, bytes) else source.read_bytes())
    return model
