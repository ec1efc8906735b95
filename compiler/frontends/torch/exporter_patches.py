"""Replacements of functions of torch's exporter and onnxscript's optimizer while a model is exported.

- `torch.onnx.export` parses the source of some 500 conversions at each call to learn their signatures, and each
  `run_decompositions` looks up the dispatcher's operators several dozen times, and evaluates the annotations of a
  function that it defines some thousand times. For small models that is most of the time of an import; here their
  results are kept.
- PyTorch records the memory format of each value that it traces. Comparing symbolic strides, it makes requirements on
  sizes of it ("the padded width is not the width") that no value depends on. Here it compares the example's.
- `math.sqrt`, which models and PyTorch's decompositions call, makes a number of a symbolic size. Here it keeps it.
- torch's quotient of two sizes divides both by their common factors and simplifies the results, with the arguments of
  all functions in them: minutes for the sizes of a Swin's windows. Here common factors are cancelled.
- Each decomposition of a program traces the guards of its capture again, as conditions on its inputs, and drops them:
  more than half of its time for long guards. Here they are left out.
- onnxscript's optimizer folds constants, which sequences and shapes of dynamic sizes need, and rewrites patterns, which
  takes longer than the conversion, and is done by passes of this project. It also takes `x + 1e-8` for `x + 0`.

In versions of torch and onnxscript without these functions nothing is replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import cache, wraps
from typing import Any, NamedTuple

Function = Callable[..., Any]


@contextlib.contextmanager
def patched_exporter() -> Iterator[None]:
    """Exports and decompositions inside the context are made without repeated work.

    Conversions and signatures are kept for the process: they belong to functions, whose source does not change. That
    operators were looked up holds until the context ends: libraries that are loaded afterwards add others. Memory
    formats are those of the example inputs.
    """
    with contextlib.ExitStack() as stack:
        for holder, name, cached in (
            ("torch.onnx._internal.exporter._registration:onnxscript_apis", "get_torchlib_ops", _kept),
            ("torch.onnx._internal.exporter._schemas", "op_signature_from_function", _kept_for_each_function),
            ("torch._export.utils", "_materialize_cpp_cia_ops", cache),
            ("torch._ops", "Callable", lambda _: _Callable),
            ("math", "sqrt", _of_symbols),
            ("sympy", "simplify", _divided),
            ("torch.export._unlift", "_ok_to_generate_guards_fn", _never),
            ("torch._prims_common", "is_contiguous", _of_example),
            ("torch._prims_common", "is_channels_last_contiguous_2d", _of_example),
            ("torch._prims_common", "is_channels_last_contiguous_3d", _of_example),
            ("torch._prims_common", "are_strides_like_channels_last_or_false", _of_example_strides),
        ):
            stack.enter_context(_replaced(holder, name, cached))
        yield


@contextlib.contextmanager
def _replaced(holder: str, name: str, changed: Callable[[Function], Function]) -> Iterator[bool]:
    """`name` in a module, or in an object of one ("module:object"), is its changed form in the context; yields False
    where there is none."""
    module, _, member = holder.partition(":")
    try:
        owner = importlib.import_module(module)
        owner = getattr(owner, member) if member else owner
        original = getattr(owner, name)
    except (ImportError, AttributeError):
        yield False
        return
    setattr(owner, name, changed(original))
    try:
        yield True
    finally:
        setattr(owner, name, original)


@cache
def _kept(function: Function) -> Function:
    """Cache one result per process."""
    return cache(function)


@cache
def _kept_for_each_function(describe: Function) -> Function:
    """Cache one result for each function passed to `describe`, for as long as that function exists."""
    results: weakref.WeakKeyDictionary[Function, dict[Any, Any]] = weakref.WeakKeyDictionary()

    @wraps(describe)
    def described(function: Function, *arguments: Any, **named: Any) -> Any:
        known = results.setdefault(function, {})
        key = (arguments, tuple(sorted(named.items())))
        if key not in known:
            known[key] = describe(function, *arguments, **named)
        return known[key]

    return described


@cache
def _of_symbols(sqrt: Function) -> Function:
    """The square root of a symbolic size is symbolic."""
    return wraps(sqrt)(lambda value: value**0.5 if hasattr(value, "node") else sqrt(value))


class _Unevaluated(type):
    """Of a type in annotations that nobody reads."""

    def __getitem__(cls, _: object) -> type:
        return cls

    def __instancecheck__(cls, instance: object) -> bool:
        return callable(instance)


class _Callable(metaclass=_Unevaluated):
    """`Callable`, of which `Callable[...]` makes nothing new."""


@cache
def _never(_: Function) -> Function:
    """A condition that does not hold."""
    return lambda: False


@cache
def _divided(simplify: Function) -> Function:
    """A quotient without common factors; functions in it (`h // 4`) are looked at as a whole."""
    from sympy import Dummy, cancel

    def hidden(part: Any, names: dict[Any, Any]) -> Any:
        if part.is_Atom or not (part.is_Add or part.is_Mul or part.is_Pow):
            return part if part.is_Atom else names.setdefault(part, Dummy())
        return part.func(*(hidden(each, names) for each in part.args))

    @wraps(simplify)
    def divided(quotient: Any, **options: Any) -> Any:
        if options or not any(each.is_Pow and each.exp.is_negative for each in quotient.args):
            return quotient
        names: dict[Any, Any] = {}
        cancelled = cancel(hidden(quotient, names))
        return cancelled.xreplace({name: part for part, name in names.items()})

    return divided


class _Strided(NamedTuple):
    """The attributes of a tensor that tests of memory formats read."""

    shape: tuple[Any, ...]
    strides: tuple[Any, ...]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def stride(self) -> tuple[Any, ...]:
        return self.strides

    def numel(self) -> Any:
        return math.prod(self.shape)


@cache
def _of_example(test: Function) -> Function:
    """A test of a tensor's memory format, asked for the sizes of the example."""

    @wraps(test)
    def asked(tensor: Any, *arguments: Any, **named: Any) -> Any:
        return test(_Strided(_example(tensor.shape), _example(tensor.stride())), *arguments, **named)

    return asked


@cache
def _of_example_strides(test: Function) -> Function:
    """A test of sizes and strides, asked for those of the example."""

    @wraps(test)
    def asked(sizes: Any, strides: Any) -> Any:
        return test(_example(sizes), _example(strides))

    return asked


def _example(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """The example's sizes; those that depend on values stay symbolic."""
    return tuple(size.node.hint if hasattr(size, "node") and size.node.has_hint() else size for size in sizes)


@contextlib.contextmanager
def without_rewriting() -> Iterator[bool]:
    """The optimizer rewrites no patterns inside the context, nor the names of inputs that are returned; yields False
    for a version of onnxscript in which it would do so nevertheless."""
    with contextlib.ExitStack() as stack:
        found = [
            stack.enter_context(_replaced(holder, name, _idle))
            for holder, name in (
                ("onnxscript.rewriter", "RewritePass"),
                ("onnx_ir.passes.common", "OutputFixPass"),
            )
        ]
        yield found[0]


@cache
def _idle(original: Any) -> Any:
    """A pass that changes nothing."""
    from onnx_ir.passes import PassResult

    class Idle(original):
        def call(self, model: Any) -> Any:
            return PassResult(model, modified=False)

    return Idle
