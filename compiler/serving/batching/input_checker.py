"""`InputChecker`: whether a request's inputs fit, before they are put beside others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compiler.artifact import TensorDescription
from compiler.artifact.dtypes import ELEMENT_TYPES
from compiler.errors import InputError
from compiler.serving.batching.layout import BatchLayout
from compiler.serving.request import Array

_SHAPES = 256  # that are remembered


class InputChecker:
    """Checks names, element types and shapes of a request's inputs, so that it can be put beside others."""

    def __init__(self, inputs: tuple[TensorDescription, ...], layout: BatchLayout) -> None:
        described = layout.described(inputs, layout.inputs)
        self._specs = [(each.name, ELEMENT_TYPES[each.dtype].numpy, each.shape, str(each)) for each in described]
        self._rows = layout.name
        self._shared = tuple(each.name for each in inputs if each.name not in layout.inputs)
        self._axes = layout.inputs
        self._takes = "the model takes " + "; ".join(map(str, described))
        # What requests of shapes that came before gave, where nothing but their shapes says so.
        self._known: dict[tuple[tuple[int, ...], ...], tuple[int, tuple[Any, ...]]] = {}

    def check(self, inputs: Mapping[str, Array]) -> tuple[int, tuple[Any, ...]]:
        """The number of rows, and what else must be equal for requests to run together.

        Raises:
            InputError: they do not fit the model.
        """
        if len(inputs) != len(self._specs):
            raise self._names_error(inputs)
        shapes = []
        for name, dtype, _, _ in self._specs:
            array = inputs.get(name)
            if array is None or array.dtype is not dtype:
                break
            shapes.append(array.shape)
        known = self._known.get(tuple(shapes))
        return self._checked(inputs) if known is None else known

    def _checked(self, inputs: Mapping[str, Array]) -> tuple[int, tuple[Any, ...]]:
        sizes: dict[str, int] = {}
        for name, dtype, shape, text in self._specs:
            array = inputs.get(name)
            if array is None:
                raise self._names_error(inputs)
            if array.dtype != dtype:
                raise InputError(f"input {name!r} has element type {array.dtype}", f"the model takes {text}")
            if array.ndim != len(shape):
                raise InputError(f"input {name!r} has shape {list(array.shape)}", f"the model takes {text}")
            for wanted, actual in zip(shape, array.shape, strict=True):
                expected = wanted if isinstance(wanted, int) else sizes.setdefault(wanted, actual)
                if actual != expected:
                    which = f" ({wanted} is {expected})" if isinstance(wanted, str) else ""
                    raise InputError(f"input {name!r} has shape {list(array.shape)}{which}", f"the model takes {text}")
        rows = sizes.pop(self._rows)
        if rows == 0:
            raise InputError("the request holds no rows", self._takes)
        found = rows, (*sizes.values(), *(inputs[name].tobytes() for name in self._shared))
        if not self._shared:
            if len(self._known) >= _SHAPES:
                self._known.clear()
            self._known[tuple(inputs[name].shape for name, *_ in self._specs)] = found
        return found

    def _names_error(self, inputs: Mapping[str, Array]) -> InputError:
        names = [name for name, *_ in self._specs]
        unknown, missing = (
            [each for each in inputs if each not in names],
            [each for each in names if each not in inputs],
        )
        parts = [f"no input is named {', '.join(map(repr, unknown))}"] if unknown else []
        parts += [f"missing input{'s' * (len(missing) > 1)}: {', '.join(map(repr, missing))}"] if missing else []
        return InputError("; ".join(parts), self._takes)
