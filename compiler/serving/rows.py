"""Helpers for policies and caches that decide row by row, and join the rows of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from compiler.artifact import TensorDescription
from compiler.errors import InputError, OptionError
from compiler.serving.request import Array, Request
from compiler.serving.service import Service


def check_batched(service: Service, policy: str) -> None:
    """Raise OptionError unless every input and output begins with the batch: one symbolic dimension, or size 1."""
    tensors = (*service.inputs, *service.outputs)
    first = {tensor.shape[0] if tensor.shape else None for tensor in tensors}
    batch = first.pop() if len(first) == 1 else None
    if not (isinstance(batch, str) or batch == 1):
        listed = "; ".join(map(str, tensors))
        raise OptionError(
            f"{policy} decides row by row, and the tensors of model {service.name!r} do not all begin with the same"
            f" batch dimension: {listed}",
            'compile it with a symbolic batch: shapes={"x": ("batch", ...)}',
        )


class Described(Protocol):
    """The interface of a service."""

    @property
    def name(self) -> str: ...

    @property
    def inputs(self) -> tuple[TensorDescription, ...]: ...

    @property
    def outputs(self) -> tuple[TensorDescription, ...]: ...


def check_same_interface(services: Iterable[Described], policy: str) -> None:
    """Raise OptionError unless all have inputs and outputs of the same names, types and (except for symbols) shapes."""
    first, *others = services
    for peer in others:
        for kind in ("inputs", "outputs"):
            ours, theirs = _form(getattr(first, kind)), _form(getattr(peer, kind))
            if ours != theirs:
                raise OptionError(
                    f"{policy}: the {kind} of {peer.name!r} differ from those of {first.name!r}: {theirs}, not {ours}",
                    "compile them from models with equal inputs and outputs",
                )


def _form(tensors: Sequence[TensorDescription]) -> list[tuple[str, str, tuple[int | None, ...]]]:
    return sorted(
        (each.name, each.dtype, tuple(size if isinstance(size, int) else None for size in each.shape))
        for each in tensors
    )


def row_count(inputs: Mapping[str, Array]) -> int:
    """Return the number of rows of a request. Raises InputError if its inputs do not agree."""
    counts = {name: array.shape[0] if array.ndim else None for name, array in inputs.items()}
    if len(set(counts.values())) != 1 or None in counts.values():
        raise InputError(f"the inputs do not have one number of rows: {counts}", "give all of them the same batch")
    return int(next(count for count in counts.values() if count is not None))


def with_rows(request: Request, rows: Sequence[int]) -> Request:
    """Return a request for some of the rows, in the given order."""
    index = np.asarray(rows, np.intp)
    return request._replace(inputs={name: array[index] for name, array in request.inputs.items()})


def joined(parts: Sequence[tuple[Sequence[int], Mapping[str, Array]]], count: int) -> dict[str, Array]:
    """Join the outputs of a batch of `count` rows from parts: (rows, their outputs by name). Raises InputError if parts
    differ in a dimension other than the batch, so they cannot form one array."""
    ((_, first), *_) = parts
    result: dict[str, Array] = {}
    for name, array in first.items():
        merged = np.empty((count, *array.shape[1:]), array.dtype)
        for rows, outputs in parts:
            if outputs[name].shape[1:] != array.shape[1:]:
                raise InputError(
                    f"rows of output {name!r} have the shapes {array.shape[1:]} and {outputs[name].shape[1:]}",
                    "send these rows as separate requests",
                )
            merged[np.asarray(rows, np.intp)] = outputs[name]
        result[name] = merged
    return result
