"""`Artifact`: a compiled module in memory, built by the driver or read from a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np

from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.artifact.fields import checked
from compiler.artifact.manifest import (
    FixedInput,
    Manifest,
    TargetDescription,
    TensorDescription,
    ToolVersions,
)
from compiler.errors import InternalError

Arrays = dict[str, np.ndarray]
_MAX_INLINE_VALUES = 64


@dataclass(frozen=True, kw_only=True)
class Contents:
    """Contents of a module beside its code.

    Attributes:
        parameters: numpy arrays in `main`'s order (bfloat16 and the like as `ml_dtypes`).
        reference_inputs, reference_outputs: the stored example.
        fixed: inputs of the model whose values were fixed when compiling.
        initial_states: first values of states that are not zero, by the names of their inputs.
        assets: files that belong to the model and that `main` does not read, by name.
    """

    parameters: Mapping[str, np.ndarray]
    reference_inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    reference_outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    initial_states: Mapping[str, np.ndarray] = field(default_factory=dict)
    assets: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """A compiled module: its manifest, machine code and tensors.

    Attributes:
        library: an ELF shared library holding a Relax VM executable whose `main(*inputs, *parameters)` returns a tuple.
        parameters: in the order in which `main` takes them after the inputs.
        reference_inputs, reference_outputs: an example and its outputs, by name; empty when there is none.
        initial_states: first values of states, by the names of their inputs; zeros where it has none.
        assets: files that belong to the model and that `main` does not read (a tokenizer), by name, as uint8 (bytes,).
    """

    manifest: Manifest
    library: bytes | memoryview
    parameters: Arrays
    reference_inputs: Arrays = field(default_factory=dict)
    reference_outputs: Arrays = field(default_factory=dict)
    initial_states: Arrays = field(default_factory=dict)
    assets: Arrays = field(default_factory=dict)

    @classmethod
    def create(
        cls,
        *,
        model_name: str,
        inputs: Sequence[TensorDescription],
        outputs: Sequence[TensorDescription],
        target: TargetDescription,
        library: bytes,
        contents: Contents,
        **manifest_fields: Any,
    ) -> Artifact:
        """Build the manifest around what a compilation produced.

        Args:
            manifest_fields: further fields of `Manifest`: threads, kernels, passes, memory_plan, versions,
                reference_tolerance.

        Raises:
            InternalError: an array has an element type that a module cannot carry.
        """
        files = {name: np.frombuffer(content, np.uint8) for name, content in contents.assets.items()}
        manifest_fields.setdefault("versions", tool_versions())
        manifest = Manifest(
            model_name=model_name,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            target=target,
            parameters=_describe(contents.parameters),
            reference_inputs=_describe(contents.reference_inputs),
            reference_outputs=_describe(contents.reference_outputs),
            initial_states=_describe(contents.initial_states),
            fixed_inputs=tuple(_fixed(name, array) for name, array in contents.fixed.items()),
            assets=_describe(files),
            **manifest_fields,
        )
        return cls(
            checked(manifest),
            library,
            dict(contents.parameters),
            dict(contents.reference_inputs),
            dict(contents.reference_outputs),
            dict(contents.initial_states),
            files,
        )

    def with_reference(
        self,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        sizes: Mapping[str, int] | None = None,
    ) -> Artifact:
        """The same module with another stored example; `sizes` as `Manifest.reference_sizes`.

        Raises InternalError as `create`.
        """
        described = {
            "reference_inputs": _describe(inputs),
            "reference_outputs": _describe(outputs),
            "reference_sizes": dict(sizes or {}),
        }
        manifest = msgspec.structs.replace(self.manifest, **described)
        return replace(self, manifest=checked(manifest), reference_inputs=dict(inputs), reference_outputs=dict(outputs))

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters together."""
        return sum(array.nbytes for array in self.parameters.values())


def tool_versions(**others: str) -> ToolVersions:
    """The versions of Tensorwright and TVM in this environment; `others` by name."""
    return ToolVersions(
        tensorwright=_installed("tensorwright"),
        tvm=_installed("apache-tvm"),
        tvm_ffi=_installed("apache-tvm-ffi"),
        others=others,
    )


@cache
def _installed(distribution: str) -> str:
    """The version of what this process has loaded; reading it from the package's metadata takes milliseconds."""
    import importlib.metadata  # loading a module does without it

    return importlib.metadata.version(distribution)


def _describe(arrays: Mapping[str, np.ndarray]) -> tuple[TensorDescription, ...]:
    for name, array in arrays.items():
        if str(array.dtype) not in ELEMENT_TYPES or array.dtype.byteorder == ">":
            raise InternalError(f"tensor {name!r} has element type {array.dtype}, which a module cannot carry")
    return tuple(TensorDescription.of(name, array) for name, array in arrays.items())


def _fixed(name: str, array: np.ndarray) -> FixedInput:
    # JSON has no number that is not finite.
    few = array.size <= _MAX_INLINE_VALUES and array.dtype.kind in "biuf" and bool(np.isfinite(array).all())
    (description,) = _describe({name: array})
    return FixedInput(tensor=description, values=tuple(array.reshape(-1).tolist()) if few else None)
