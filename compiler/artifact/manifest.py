"""The manifest of a module, as records that are stored as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, field

from compiler.artifact.container import FORMAT_VERSION
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import DIGEST_PATTERN, Record

if TYPE_CHECKING:
    JsonValue: TypeAlias = "dict[str, JsonValue] | list[JsonValue] | str | bool | int | float | None"
else:
    JsonValue = Any

MAX_ELEMENTS = 2**60
MAX_BRANCH_DEPTH = 64
_MAX_DEPTH = 200  # maximum depth of JSON values, which are read recursively
Name = Annotated[str, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=0, le=2**62)]
Dimension = Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)] | Annotated[str, Meta(min_length=1, max_length=1024)]
Integer = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN)]


class TensorDescription(Record, frozen=True, kw_only=True):
    """Name, shape and element type of an input, an output or a parameter.

    Attributes:
        shape: a number, or the name of a symbolic dimension (for outputs, an expression of such names).
        dtype: TVM's name for the element type: one of `dtypes.ELEMENT_TYPES`.
        carrier: the type that `main` has for it if it differs: int8 or uint8 for the values of an integer, or the bits
            of a float, of less than 16 bits.
    """

    name: Name
    shape: Annotated[tuple[Dimension, ...], Meta(max_length=64)]
    dtype: str
    carrier: Literal["int8", "uint8"] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENT_TYPES:
            raise ValueError(f"unknown element type {self.dtype!r}; known: {', '.join(ELEMENT_TYPES)}")
        if math.prod(max(size, 1) for size in self.shape if isinstance(size, int)) > MAX_ELEMENTS:
            raise ValueError(f"shape {self.shape} has more than {MAX_ELEMENTS} elements")

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> TensorDescription:
        """Describe an array (with its dtype as named by `numpy` or `ml_dtypes`)."""
        return cls(name=name, shape=tuple(array.shape), dtype=str(array.dtype))

    @property
    def nbytes(self) -> int:
        """Size in bytes of a tensor without symbolic dimensions; types smaller than a byte take one byte per
        element."""
        return math.prod(int(size) for size in self.shape) * ELEMENT_TYPES[self.dtype].numpy.itemsize

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


class DeviceRequirement(Record, frozen=True, kw_only=True):
    """The device, in addition to the processor, that a module runs on.

    Attributes:
        kind: "cuda" is the only one.
        compute_capability: minimum compute capability of the device: 10 major + minor.
        simulated: the module contains no machine code for a device.
        graphs: kernels are launched as CUDA graphs.
    """

    kind: Name
    compute_capability: Annotated[int, Meta(ge=0, le=10_000)] = 0
    simulated: bool = False
    graphs: bool = False


class TargetDescription(Record, frozen=True, kw_only=True):
    """The target for which the code was built.

    Attributes:
        architecture: as returned by `platform.machine()`: "x86_64", "aarch64".
        required_cpu_features: features that the code needs, named as in LLVM or /proc/cpuinfo.
        details: additional description of the target (its machine model, TVM's target); "device" is a
            `DeviceRequirement`.
    """

    name: Name
    architecture: Name
    required_cpu_features: tuple[Name, ...] = ()
    details: dict[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_json(self.details)
        try:
            _ = self.device
        except msgspec.ValidationError as error:
            raise ValueError(f"details.device: {error}") from error

    @property
    def device(self) -> DeviceRequirement | None:
        """The device that the module needs besides the CPU; None if it needs none."""
        return msgspec.convert(self.details.get("device"), DeviceRequirement | None)

    @property
    def faster_precisions(self) -> str:
        """Precisions that are estimated to be much faster than float32, as text; "" if there are none."""
        return str(self.details.get("faster_precisions", ""))


class ToolVersions(Record, frozen=True, kw_only=True):
    """Versions of the software that built the module. `tvm` must equal the runtime's version: TVM has no stable
    interface."""

    tensorwright: Name
    tvm: Name
    tvm_ffi: Name
    others: dict[str, Name] = field(default_factory=dict)


class KernelProvenance(Record, frozen=True, kw_only=True):
    """The origin of one kernel's schedule, and the amount of its computation.

    Attributes:
        source: the rule's analytic default, a tuning record, or "as-is" if no rule applied to the kernel.
        origin: the file of the tuning record.
        measure: how the record determined that the config is faster: "timed", or the name of the counter or model.
        operations: arithmetic operations of one call: a number, or a formula of the names in `symbols`; None if they
            depend on the data.
        symbols: where a call's arguments contain the size for each name: (argument, axis); axis -1 is the argument
            itself.
        tasks: distinct extents of its parallel loops: numbers, formulas of the names in `symbols`, or "?" if only the
            code contains them; empty if it runs on one thread. None if it does not run on a processor.
        serial: why it runs on one thread, for any size; None if threads share its work.
        gathered: the arguments of which a call reads only as many elements as it writes (embedding tables).
        outputs: how many of its tensors it writes; they are the last ones.
    """

    kernel: Name
    rule: Name
    source: Literal["default", "record", "as-is"]
    origin: Name | None = None
    measure: Name | None = None
    config: dict[str, JsonValue] = field(default_factory=dict)
    operations: Name | None = None
    symbols: dict[Name, tuple[Integer, Integer]] = field(default_factory=dict)
    tasks: tuple[Name, ...] | None = None
    serial: Name | None = None
    gathered: tuple[Integer, ...] = ()
    outputs: Size = 1

    def __post_init__(self) -> None:
        _check_json(self.config)


class CallList(Record, frozen=True, kw_only=True):
    """Nodes of the model that each kernel call computes.

    Attributes:
        nodes, callees: names to which `functions` refers by index.
        functions: by function name in the module, its steps in order. A step is a call, [callee, node, ...], with the
            node that accounts for most of its work first, or the steps of the two branches of a condition, [[step,
            ...], [step, ...]].
    """

    nodes: tuple[Name, ...]
    callees: tuple[Name, ...]
    functions: dict[Name, list[JsonValue]]

    def every_call(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """The callee and the nodes of each call in the code, including those in both branches of a condition."""
        waiting: list[Any] = list(self.functions.values())
        while waiting:
            for step in waiting.pop(0):
                if isinstance(step[0], list):
                    waiting += step
                else:
                    yield self.callees[step[0]], tuple(self.nodes[each] for each in step[1:])

    def __post_init__(self) -> None:
        for steps in self.functions.values():
            self._check_steps(steps, 0)

    def _check_steps(self, steps: JsonValue, depth: int) -> None:
        if not isinstance(steps, list) or depth > MAX_BRANCH_DEPTH:
            raise ValueError("the steps of a function are not a list, or branches are nested too deeply")
        for step in steps:
            if not isinstance(step, list) or not step:
                raise ValueError("a step of a function is neither a call nor branches")
            if isinstance(step[0], list):
                if len(step) != 2:
                    raise ValueError("a condition must have two branches")
                for branch in step:
                    self._check_steps(branch, depth + 1)
            elif not all(type(each) is int for each in step) or not self._names(step):
                raise ValueError("a call refers to a name that is not listed")

    def _names(self, step: list[Any]) -> bool:
        callee, *nodes = step
        return 0 <= callee < len(self.callees) and all(0 <= node < len(self.nodes) for node in nodes)


class PassTiming(Record, frozen=True, kw_only=True):
    """Wall-clock seconds of one compilation pass or phase."""

    name: Name
    seconds: Annotated[float, Meta(ge=0)]


class MemoryPlan(Record, frozen=True, kw_only=True):
    """Activation memory in bytes: the plan's peak, the sum without reuse, and the lower bound given by live bytes.
    `dynamic_bytes`: size of tensors of unbounded size, which the other fields do not include: a formula of symbolic
    dimensions; "" if it is not known."""

    peak_bytes: Size
    without_reuse_bytes: Size
    live_bytes: Size
    dynamic_bytes: Name = "0"


class FixedInput(Record, frozen=True, kw_only=True):
    """A model input whose value was fixed at compile time; `values` (flat) is present only if there are few."""

    tensor: TensorDescription
    values: Annotated[tuple[bool | Integer | float, ...], Meta(max_length=64)] | None = None


class Requirement(Record, frozen=True, kw_only=True):
    """A relation between input sizes that the model requires.

    Attributes:
        left, right: formulas (`profiling.formula`) of the names in `symbols`.
        relation: "equal"; "at least": left >= right; "broadcast": left equals right, or one of them is 1.
        symbols: the symbolic dimension for each name.
        where: the part of the model that requires it, as text for messages.
    """

    left: Name
    relation: Literal["equal", "at least", "broadcast"]
    right: Name
    symbols: dict[Name, Name] = field(default_factory=dict)
    where: Name


class IndexRequirement(Record, frozen=True, kw_only=True):
    """An input whose elements are indices, lengths or counts: each must lie in [least, size).

    Attributes:
        input: the input's name.
        size: a formula of the names in `symbols`, as in `Requirement`.
        least: another formula; None for -size, where negative indices count from the end of an axis.
    """

    input: Name
    size: Name
    least: Name | None = None
    symbols: dict[Name, Name] = field(default_factory=dict)
    where: Name


class StateDescription(Record, frozen=True, kw_only=True):
    """A tensor that a session keeps: an input, and the output that is its next value.

    Attributes:
        input, output: names of the pair, which have the same element type, and the same shape if the run writes to the
            input.
        axis: the axis of the rows, of which a session counts those in use; None: the state is replaced as a whole.
        grows: the output is longer than the input along `axis`, and a run does not change the input; there are no rows
            initially.
    """

    name: Name
    input: Name
    output: Name
    axis: Annotated[int, Meta(ge=0, le=63)] | None = None
    grows: bool = False


class PositionDescription(Record, frozen=True, kw_only=True):
    """The input that tells how many rows of the states are in use before a run, and the number of rows that a run adds.

    Attributes:
        input: its name; the input is int64, of rank 0 or 1.
        rows: a number, or the name of a symbolic dimension of the inputs.
    """

    input: Name
    rows: Annotated[int, Meta(ge=0, le=MAX_ELEMENTS)] | Name


class ReferenceTolerance(Record, frozen=True, kw_only=True):
    """Tolerance of outputs against the reference: |output - reference| <= absolute + relative * |reference|."""

    relative: Annotated[float, Meta(ge=0)] = 1e-3
    absolute: Annotated[float, Meta(ge=0)] = 1e-4


class Manifest(Record, frozen=True, kw_only=True):
    """The manifest: everything in a module except its code and tensors.

    Attributes:
        inputs, outputs: those of the function `main`, in order.
        parameters: the arguments of `main` after the inputs, in order, with exact shapes.
        compact_parameters: number of parameters at the end that are stored in a smaller form, which `EXPAND_ENTRY`
            expands.
        requirements: relations between symbolic dimensions of the inputs, which a run checks first.
        indices: inputs whose elements are indices, which a run also checks.
        calls: which nodes of the model the kernels compute; None if the model has no names for them.
        threads: the number of threads to use; None leaves it to the device (its physical cores).
        states: inputs that a session keeps, paired with outputs; `initial_states` are the values, by input name, of
            states that do not start as zeros.
        position: the input that a session provides itself.
        state_format: equal for modules whose sessions can exchange their states, for any target.
        reference_inputs, reference_outputs: the stored example and its outputs, with exact shapes; may be empty. If
            inputs that a session provides are missing, the example is the first run of a session whose states have
            `reference_sizes` as the sizes of symbolic dimensions.
        assets: files that belong to the model and that `main` does not read, as uint8 (bytes,); may be empty.
        checksums: SHA-256 tree digest (hex) of each section; filled in when the file is written.
    """

    format_version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    model_name: Name
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    parameters: tuple[TensorDescription, ...] = ()
    compact_parameters: Size = 0
    target: TargetDescription
    versions: ToolVersions
    threads: Annotated[int, Meta(ge=1, le=4096)] | None = None
    fixed_inputs: tuple[FixedInput, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    indices: tuple[IndexRequirement, ...] = ()
    kernels: tuple[KernelProvenance, ...] = ()
    calls: CallList | None = None
    passes: tuple[PassTiming, ...] = ()
    memory_plan: MemoryPlan | None = None
    states: tuple[StateDescription, ...] = ()
    position: PositionDescription | None = None
    initial_states: tuple[TensorDescription, ...] = ()
    state_format: Digest | None = None
    reference_sizes: dict[Name, Size] = field(default_factory=dict)
    reference_inputs: tuple[TensorDescription, ...] = ()
    reference_outputs: tuple[TensorDescription, ...] = ()
    reference_tolerance: ReferenceTolerance = ReferenceTolerance()
    assets: tuple[TensorDescription, ...] = ()
    checksums: dict[Name, Digest] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_states()

    def _check_names(self) -> None:
        stored = (self.parameters, self.reference_inputs, self.reference_outputs, self.initial_states, self.assets)
        for tensors in (self.inputs, self.outputs, *stored):
            names = [tensor.name for tensor in tensors]
            if len(set(names)) != len(names):
                raise ValueError("two inputs, outputs or parameters have the same name")
        if any(isinstance(size, str) for tensors in stored for tensor in tensors for size in tensor.shape):
            raise ValueError("a stored tensor has a symbolic dimension")
        if self.compact_parameters > len(self.parameters):
            raise ValueError(f"{self.compact_parameters} of {len(self.parameters)} parameters cannot be compact")

    def _check_states(self) -> None:
        inputs, outputs = ({each.name: each for each in tensors} for tensors in (self.inputs, self.outputs))
        for names in zip(*((each.name, each.input, each.output) for each in self.states), strict=True):
            if len(set(names)) != len(names):
                raise ValueError("two states have the same name, input or output")
        for state in self.states:
            before, after = inputs.get(state.input), outputs.get(state.output)
            if before is None or after is None or before.dtype != after.dtype:
                raise ValueError(f"state {state.name!r} does not name an input and an output of one element type")
            if state.axis is not None and state.axis >= len(before.shape):
                raise ValueError(f"state {state.name!r} has no axis {state.axis}")
            if state.grows and (state.axis is None or not isinstance(before.shape[state.axis], str)):
                raise ValueError(f"state {state.name!r} has no axis to grow along")
            ranks = len(before.shape) == len(after.shape)
            same = ranks and all(
                one == other or (state.grows and axis == state.axis)
                for axis, (one, other) in enumerate(zip(before.shape, after.shape, strict=True))
            )
            if not same:
                raise ValueError(f"state {state.name!r} does not name an input and an output of one shape")
        state_inputs = {state.input for state in self.states}
        if any(
            each.name not in state_inputs
            or (each.shape, each.dtype) != (inputs[each.name].shape, inputs[each.name].dtype)
            for each in self.initial_states
        ):
            raise ValueError("an initial value has no state with its shape and element type")
        if self.position is not None:
            position = inputs.get(self.position.input)
            if (
                position is None
                or position.dtype != "int64"
                or len(position.shape) > 1
                or position.name in state_inputs
            ):
                raise ValueError("the position does not name an input of integers")
            sizes = {size for each in self.inputs for size in each.shape}
            if isinstance(self.position.rows, str) and self.position.rows not in sizes:
                raise ValueError("the rows of a run are not a dimension of an input")

    @property
    def session_inputs(self) -> tuple[TensorDescription, ...]:
        """The inputs that a session does not provide itself."""
        own = {state.input for state in self.states} | ({self.position.input} if self.position is not None else set())
        return tuple(each for each in self.inputs if each.name not in own)


def _check_json(value: JsonValue, most: int = _MAX_DEPTH) -> None:
    """Reject nesting that is too deep for recursive readers, and integers that do not fit a float."""
    if most < 0:
        raise ValueError("a value is nested too deeply")
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        raise ValueError("a number is too large")
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_json(each, most - 1)
