"""Registry of graph passes: registration, discovery and lookup by name.

    @graph_pass("fold-constants", summary="Evaluate expressions that depend only on constants")
    def fold_constants(mod: IRModule, context: PipelineContext) -> IRModule: ...

Users define passes in the same way, or pass any `tvm.transform.Pass` or function from IRModule to IRModule.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import tvm
from tvm.ir import IRModule

from compiler.errors import OptionError
from compiler.passes.context import PipelineContext
from schedules.discovery import import_all

Rewrite = Callable[[IRModule, PipelineContext], IRModule]
PassLike = Any  # a GraphPass, the name of one, a tvm.transform.Pass, or a function from IRModule to IRModule


@dataclass(frozen=True)
class GraphPass:
    """A named pass over a module.

    Attributes:
        name: verb first, words joined by hyphens, as users write it.
        summary: a one-line description.
        rewrite: the pass itself; returns the same module object if there is nothing to do.
        required: the module cannot be built without it; `verify` runs these to build intermediate modules.
        only: the one pipeline that runs it (`Target.pipeline`: "processor" or "gpu"); None: all.
    """

    name: str
    summary: str
    rewrite: Rewrite
    required: bool = False
    only: str | None = None

    def serves(self, pipeline: str) -> bool:
        """True if that pipeline runs the pass."""
        return self.only in (None, pipeline)

    def __call__(self, mod: IRModule, context: PipelineContext | None = None) -> IRModule:
        """Run on `mod`; the default `context` has default options."""
        return self.rewrite(mod, context if context is not None else PipelineContext())

    def as_tvm_pass(self, context: PipelineContext | None = None) -> Any:
        """Return the pass as a `tvm.transform.Pass`, to be combined with TVM's own."""

        def transform(mod: IRModule, _tvm_context: object) -> IRModule:
            return self(mod, context)

        return tvm.transform.module_pass(transform, opt_level=0, name=self.name)


_PASSES: dict[str, GraphPass] = {}
_discovered = False


def graph_pass(
    name: str, *, summary: str, required: bool = False, only: str | None = None
) -> Callable[[Rewrite], GraphPass]:
    """Register the decorated function as the pass `name` and turn it into a `GraphPass`. Raises OptionError if the name
    is already taken by another function."""

    def register(rewrite: Rewrite) -> GraphPass:
        result = GraphPass(name, summary, rewrite, required, only)
        known = _PASSES.get(name)
        if known is not None and known.rewrite.__module__ != rewrite.__module__:
            raise OptionError(
                f"a pass named {name!r} exists already, in {known.rewrite.__module__}",
                "give yours another name, or replace that one with passes={'instead-of:" + name + "': your_pass}",
            )
        _PASSES[name] = result
        return result

    return register


def all_passes() -> dict[str, GraphPass]:
    """Return every registered pass by name, sorted; the first call imports the modules of `compiler.passes`."""
    global _discovered
    if not _discovered:
        import_all("compiler.passes")
        _discovered = True
    return dict(sorted(_PASSES.items()))


def get_pass(name: str) -> GraphPass:
    """Return the pass `name`. Raises OptionError if there is no such pass; the hint lists similar names."""
    passes = all_passes()
    if name in passes:
        return passes[name]
    raise OptionError(f"no pass is named {name!r}", did_you_mean(name, passes))


def is_own(candidate: GraphPass) -> bool:
    """True if `candidate` is one of the passes of `compiler.passes`, whose output types are tested."""
    return candidate.rewrite.__module__.startswith("compiler.passes.") and _PASSES.get(candidate.name) is candidate


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint with up to three similar names from `known`, or all names if none is similar."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else "known: " + ", ".join(sorted(known))


def as_graph_pass(candidate: PassLike) -> GraphPass:
    """Convert `candidate` to a `GraphPass`: a GraphPass, a name, a `tvm.transform.Pass`, or a function of a module.
    Raises OptionError if it is none of these, or an unknown name."""
    if isinstance(candidate, GraphPass):
        return candidate
    if isinstance(candidate, str):
        return get_pass(candidate)
    if isinstance(candidate, tvm.transform.Pass):
        return GraphPass(str(candidate.info.name), "a TVM pass", lambda mod, _context: candidate(mod))
    if callable(candidate):
        name = getattr(candidate, "__name__", type(candidate).__name__).replace("_", "-")
        takes_context = len(inspect.signature(candidate).parameters) >= 2
        rewrite: Rewrite = candidate if takes_context else lambda mod, _context: candidate(mod)
        return GraphPass(name, (inspect.getdoc(candidate) or "a pass of the user").splitlines()[0], rewrite)
    raise OptionError(
        f"{candidate!r} is not a pass",
        "give a registered name, a tvm.transform.Pass, or a function from IRModule to IRModule",
    )
