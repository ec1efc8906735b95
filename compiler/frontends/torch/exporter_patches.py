"""Replacements of functions of torch's exporter and onnxscript's optimizer while a model is exported.

- `torch.onnx.export` parses the source of some 500 conversions at each call to learn their signatures, and each
  `run_decompositions` looks up the dispatcher's operators several dozen times. For small models that is most of the
  time of an import; here their results are kept.
- onnxscript's optimizer folds constants, which sequences and shapes of dynamic sizes need, and rewrites patterns, which
  takes longer than the conversion, and is done by passes of this project. It also takes `x + 1e-8` for `x + 0`.

In versions of torch and onnxscript without these functions nothing is replaced.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

Function = Callable[..., Any]


@contextlib.contextmanager
def exporter_caches() -> Iterator[None]:
    """Exports and decompositions inside the context are made without repeated work.

    Conversions and signatures are kept for the process: they belong to functions, whose source does not change. That
    operators were looked up holds until the context ends: libraries that are loaded afterwards add others.
    """
    with contextlib.ExitStack() as stack:
        for holder, name, cached in (
            ("torch.onnx._internal.exporter._registration:onnxscript_apis", "get_torchlib_ops", _kept),
            ("torch.onnx._internal.exporter._schemas", "op_signature_from_function", _kept_for_each_function),
            ("torch._export.utils", "_materialize_cpp_cia_ops", cache),
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
