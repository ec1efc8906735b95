"""Patches of torch's exporter and onnxscript's optimizer that are active while a model is exported.

- `torch.onnx.export` parses the source of some 500 conversions on each call to learn their signatures, and each
  `run_decompositions` looks up the dispatcher's operators several dozen times, and evaluates the annotations of a
  function that it defines some thousand times. For small models this dominates import time; the results are cached.
- PyTorch records the memory format of each value that it traces. Comparing symbolic strides adds requirements on sizes
  ("the padded width is not the width") that no value depends on. Instead, the example's strides are compared.
- A view compares the axes of its tensor with those of the result one by one, in formulas that take seconds for sizes of
  windows. Instead, a contiguous tensor is viewed by the sizes alone.
- `math.sqrt`, called by models and PyTorch's decompositions, turns a symbolic size into a number. Instead, it stays
  symbolic.
- torch's quotient of two sizes divides both by their common factors and simplifies the results, including the arguments
  of all functions in them: minutes for the sizes of a Swin's windows. Instead, only common factors are cancelled.
- sympy walks a whole expression each time that its symbols are asked for, which torch does for each size of each tensor
  of each call: a fifth of the time for nested sizes. The results are cached until the context ends.
- Each decomposition of a program traces the guards of its capture again, as conditions on its inputs, and drops them,
  which takes more than half of its time for long guards. They are skipped.
- The exporter rounds Python numbers to float32 before it casts them to the type of a tensor, float64 included. Instead,
  they are cast from float64.
- onnxscript's optimizer folds constants, which sequences and shapes of dynamic sizes need, and rewrites patterns, which
  takes longer than the conversion and duplicates passes of this project. It also treats `x + 1e-8` as `x + 0`.

Versions of torch and onnxscript without these functions are not patched.
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
    """Context in which exports and decompositions avoid repeated work.

    Conversions and signatures are cached for the process: they belong to functions, whose source does not change. The
    operator look-up is cached until the context ends, since libraries loaded later add operators. Memory formats are
    those of the example inputs.
    """
    with contextlib.ExitStack() as stack:
        for holder, name, cached in (
            ("torch.onnx._internal.exporter._registration:onnxscript_apis", "get_torchlib_ops", _kept),
            ("torch.onnx._internal.exporter._schemas", "op_signature_from_function", _kept_for_each_function),
            ("torch.onnx._internal.exporter._building", "_process_python_constants", _cast_from_float64),
            ("torch._export.utils", "_materialize_cpp_cia_ops", cache),
            ("torch._ops", "Callable", lambda _: _Callable),
            ("math", "sqrt", _of_symbols),
            ("sympy", "simplify", _divided),
            ("torch.export._unlift", "_ok_to_generate_guards_fn", _never),
            ("torch._prims_common", "is_contiguous", _of_example),
            ("torch._prims_common", "is_channels_last_contiguous_2d", _of_example),
            ("torch._prims_common", "is_channels_last_contiguous_3d", _of_example),
            ("torch._prims_common", "are_strides_like_channels_last_or_false", _of_example_strides),
            ("torch._refs", "_reshape_view_helper", _at_once),
            ("sympy:Basic", "free_symbols", _of_each_expression),
            ("sympy:Expr", "is_number", _of_each_expression),
        ):
            stack.enter_context(patched(holder, name, cached))
        yield


@contextlib.contextmanager
def patched(holder: str, name: str, changed: Callable[[Any], Any]) -> Iterator[bool]:
    """Context in which `name` in a module, or in an object of one ("module:object"), is replaced by its changed form;
    yields False if it does not exist."""
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
    """Keep the square root of a symbolic size symbolic."""
    return wraps(sqrt)(lambda value: value**0.5 if hasattr(value, "node") else sqrt(value))


@cache
def _cast_from_float64(process: Function) -> Function:
    """Make numbers that a conversion casts constants of float64."""

    @wraps(process)
    def processed(signature: Any, named_inputs: dict[str, Any], types: Any, constants: Any, opset: Any) -> Any:
        import onnx_ir

        if signature.name in ("Cast", "CastLike"):
            wide = {name: value for name, value in named_inputs.items() if type(value) is float}
            tensors = {name: onnx_ir.tensor(value, onnx_ir.DataType.DOUBLE) for name, value in wide.items()}
            named_inputs.update({name: opset.Constant(value=tensor) for name, tensor in tensors.items()})
        return process(signature, named_inputs, types, constants, opset)

    return processed


class _Unevaluated(type):
    """Metaclass of a type for annotations that no code reads."""

    def __getitem__(cls, _: object) -> type:
        return cls

    def __instancecheck__(cls, instance: object) -> bool:
        return callable(instance)


class _Callable(metaclass=_Unevaluated):
    """`Callable` with a `Callable[...]` that creates no new object."""


@cache
def _never(_: Function) -> Function:
    """Return a condition that never holds."""
    return lambda: False


@cache
def _divided(simplify: Function) -> Function:
    """Cancel common factors of a quotient; functions in it (`h // 4`) are treated as opaque."""
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


def _of_each_expression(getter: property) -> property:
    """Cache a property of each expression, which is immutable."""
    known: dict[Any, Any] = {}

    def cached(expression: Any) -> Any:
        value = known.get(expression)
        if value is None:
            value = known[expression] = getter.fget(expression)  # type: ignore[misc]
        return set(value) if isinstance(value, set) else value

    return property(cached)


class _Strided(NamedTuple):
    """The tensor attributes that memory-format tests read."""

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
    """Apply a test of a tensor's memory format to the example's sizes."""

    @wraps(test)
    def asked(tensor: Any, *arguments: Any, **named: Any) -> Any:
        return test(_Strided(_example(tensor.shape), _example(tensor.stride())), *arguments, **named)

    return asked


@cache
def _of_example_strides(test: Function) -> Function:
    """Apply a test of sizes and strides to the example's."""

    @wraps(test)
    def asked(sizes: Any, strides: Any) -> Any:
        return test(_example(sizes), _example(strides))

    return asked


def _example(sizes: Iterable[Any]) -> tuple[Any, ...]:
    """Return the example's sizes; those that depend on values stay symbolic."""
    return tuple(size.node.hint if hasattr(size, "node") and size.node.has_hint() else size for size in sizes)


@cache
def _at_once(view: Function) -> Function:
    """A view of a contiguous tensor, without comparing its axes with those of the result."""
    from torch._prims_common import extract_shape_from_varargs, infer_size, is_contiguous, make_contiguous_strides_for

    @wraps(view)
    def viewed(tensor: Any, *shape: Any, allow_copy: bool) -> Any:
        new_shape = extract_shape_from_varargs(shape, validate=False)
        dynamic = any(hasattr(size, "node") for size in (*tensor.shape, *new_shape))
        if not (dynamic and tensor.ndim and new_shape and is_contiguous(tensor)):
            return view(tensor, *shape, allow_copy=allow_copy)
        sizes = infer_size(new_shape, tensor.numel())  # checks the number of elements
        return tensor.as_strided(sizes, make_contiguous_strides_for(sizes))

    return viewed


@contextlib.contextmanager
def without_rewriting() -> Iterator[bool]:
    """Context in which the optimizer rewrites no patterns and does not rename returned inputs; yields False for
    versions of onnxscript in which this is not possible."""
    with contextlib.ExitStack() as stack:
        patches = [
            stack.enter_context(patched(holder, name, _idle))
            for holder, name in (
                ("onnxscript.rewriter", "RewritePass"),
                ("onnx_ir.passes.common", "OutputFixPass"),
            )
        ]
        yield patches[0]


@cache
def _idle(original: Any) -> Any:
    """Return a pass that changes nothing."""
    from onnx_ir.passes import PassResult

    class Idle(original):
        def call(self, model: Any) -> Any:
            return PassResult(model, modified=False)

    return Idle
