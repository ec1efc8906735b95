"""`int` and `float` calls on a dynamic size in model code, which would turn it into a number and fix it.

While a model is captured, they keep symbolic sizes symbolic: the names are replaced in the Python modules that define
the classes of the model and in those of the same packages, if functions call them, and in modules of imported packages
that use torch, as a model calls functions of kornia. The replacements equal the builtin types and have their instances,
but are not the same objects; modules that compare with `is` are not modified.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_IS = dis.opmap["IS_OP"]
_NOT_OF_MODELS = {"torch", __name__.partition(".")[0], *sys.stdlib_module_names}


@contextmanager
def number_types_captured(model: torch.nn.Module) -> Iterator[bool]:
    """Context in which `int(size)` and `float(size)` in the model's code are symbolic; yields False if there are
    none."""
    import torch

    symbolic: Any = torch
    types = {"int": _stand_in(int, symbolic.sym_int), "float": _stand_in(float, symbolic.sym_float)}
    readers: dict[tuple[int, str], list[FunctionType]] = {}
    for function in _functions(model):
        for name in types:
            if name in function.__code__.co_names and name not in function.__globals__:
                readers.setdefault((id(function.__globals__), name), []).append(function)
    changed = [
        (functions[0].__globals__, name)
        for (_, name), functions in readers.items()
        if not any(_compares(each.__code__, name) for each in functions)
    ]
    try:
        for names, name in changed:
            names[name] = types[name]
        yield bool(changed)
    finally:
        for names, name in changed:
            names.pop(name, None)


def _functions(model: torch.nn.Module) -> Iterator[FunctionType]:
    """Yield the functions of the model's classes, and of the Python modules in their packages."""
    classes = {base for each in model.modules() for base in type(each).__mro__}
    packages = {_package(each.__module__) for each in classes} - _NOT_OF_MODELS
    imported = _imported({each.__module__ for each in classes}) - packages - _NOT_OF_MODELS
    for path, module in list(sys.modules.items()):
        package = _package(path)
        if package in packages or (package in imported and "torch" in vars(module)):
            for value in list(vars(module).values()):
                if isinstance(value, type):
                    classes.add(value)
                elif isinstance(value, FunctionType):
                    yield value
    for cls in classes:
        if _package(cls.__module__) in packages | imported:
            yield from (value for value in vars(cls).values() if isinstance(value, FunctionType))


def _imported(paths: set[str]) -> set[str]:
    """The packages of the modules, functions and classes that these modules hold."""
    held = [value for path in paths if path in sys.modules for value in vars(sys.modules[path]).values()]
    names = [each.__name__ if isinstance(each, ModuleType) else getattr(each, "__module__", None) for each in held]
    return {_package(name) for name in names if isinstance(name, str)}


def _package(path: str) -> str:
    return path.partition(".")[0]


@cache  # models of one package are captured repeatedly
def _compares(code: CodeType, name: str) -> bool:
    """True for `x is int`."""
    if _IS not in code.co_code[::2]:  # decoding all instructions is slow
        return False
    return any(one.argval == name and two.opcode == _IS for one, two in pairwise(dis.get_instructions(code)))


def _stand_in(builtin: type, symbolic: Callable[[Any], Any]) -> type:
    """Return a type that equals `builtin` and has its instances and subclasses."""

    class StandIn(type):
        def __call__(cls, *arguments: Any, **options: Any) -> Any:
            import torch

            of_size = len(arguments) == 1 and isinstance(arguments[0], torch.SymInt | torch.SymFloat)
            return symbolic(*arguments) if of_size else builtin(*arguments, **options)

        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, builtin)

        def __subclasscheck__(cls, subclass: type) -> bool:
            return issubclass(subclass, builtin)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is builtin

        def __hash__(cls) -> int:
            return hash(builtin)

    return StandIn(builtin.__name__, (builtin,), {})
