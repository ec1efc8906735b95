"""The result of every frontend.

Selection of the outputs that a module returns.

Replacement of a module's main function, for rewrites of imported models.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tvm
from tvm import relax
from tvm.ir import IRModule

from compiler.artifact.manifest import IndexRequirement, Requirement
from compiler.errors import InternalError, OptionError
from compiler.support.model_nodes import ModelNode
from compiler.support.notebook import shortened
from schedules.ir.tvm_types import BlockBuilder, Function


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and data type of one input or output.

    A dimension is an int, or a str: a symbolic dimension's name, or an expression (`"batch*2"`). `carrier` is the type
    that the module uses if it is not `dtype`: a byte that holds the value of a narrow integer, or the bits of a narrow
    float.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    carrier: Literal["int8", "uint8"] | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class StateSpec:
    """A tensor kept between runs: an input and the output that is its next value.

    Attributes:
        name: its name in a session.
        input, output: names of the pair in `ImportedModel.inputs` and `outputs`, of equal shape and dtype.
        initial: its initial value, of its full shape; None: zeros.
        axis: the axis of the rows, one per step, of which `PositionSpec` gives the number in use; its size, the
            capacity, may be a symbolic dimension. None: the whole value is replaced.
        grows: the output is a new tensor, longer along `axis`, whose size is symbolic; initially empty.
    """

    name: str
    input: str
    output: str
    initial: np.ndarray | None = None
    axis: int | None = None
    grows: bool = False


@dataclass(frozen=True)
class PositionSpec:
    """The input with the number of rows in use, before a run, of the states with an axis; a session sets it.

    Attributes:
        input: its name: int64, of shape (), or (n,) with n equal values. If n is a symbolic dimension of no other
            input, n itself is the number of rows.
        rows: number of rows that a run adds: a constant, or the name of a symbolic dimension of the inputs.
    """

    input: str
    rows: int | str


@dataclass(frozen=True)
class ImportedModel:
    """A model as a Relax module.

    `mod["main"]` takes the runtime inputs in the order of `inputs` and returns a tuple in the order of `outputs`;
    weights are embedded constants. `fixed` holds the model inputs that were fixed during import and are no longer
    runtime inputs. `requirements` and `indices` are checked at the start of a run; `checks` describes the module's size
    checks: the one that binds the variable `check_N_` is `checks[N]`. `notes` are lines for the user about results that
    differ from the model's declaration. `states` pair inputs with outputs: `main` is a pure function of them here, and
    updates them in place once compiled. `nodes` maps variables of `mod` named after model nodes to these nodes.
    `assets` are additional files of the module, such as a tokenizer, by name. `encoder` is a separate model whose
    outputs are inputs of this one: it runs once for each text that this one generates.
    """

    mod: tvm.IRModule
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    fixed: dict[str, np.ndarray] = field(default_factory=dict)
    requirements: tuple[Requirement, ...] = ()
    indices: tuple[IndexRequirement, ...] = ()
    checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    assets: Mapping[str, bytes] = field(default_factory=dict)
    states: tuple[StateSpec, ...] = ()
    position: PositionSpec | None = None
    nodes: Mapping[str, tuple[ModelNode, ...]] = field(default_factory=dict)
    encoder: ImportedModel | None = None

    def state_positions(self) -> tuple[tuple[int, int], ...]:
        """Return (input index, output index) of each state that is updated in place."""
        inputs, outputs = ([spec.name for spec in specs] for specs in (self.inputs, self.outputs))
        return tuple((inputs.index(each.input), outputs.index(each.output)) for each in self.states if not each.grows)

    def __repr__(self) -> str:
        inputs, outputs = (shortened(specs, separator="; ") for specs in (self.inputs, self.outputs))
        return f"<{type(self).__name__} ({inputs}) -> ({outputs})>"


def selected_outputs(
    selection: Sequence[str] | None, declared: Sequence[str], inner: Collection[str] = ()
) -> list[str]:
    """Return the names in `selection`, in order, or all declared outputs without duplicates if it is None. Raises
    OptionError if `selection` is not a sequence of names, is empty, or has a duplicate or unknown name.

    Args:
        declared: names of the model's outputs.
        inner: names of other values that can be returned.
    """
    if selection is None:
        return list(dict.fromkeys(declared))
    if isinstance(selection, str) or not isinstance(selection, Sequence):
        raise OptionError(f"outputs= must be a list of names, not {selection!r}", 'as in outputs=["logits"]')
    if not selection:
        raise OptionError("outputs= names no output", f"the model has {_listed(declared)}")
    known = {*declared, *inner}
    for name in selection:
        if name not in known:
            near = difflib.get_close_matches(str(name), list(declared), 1)
            near = near or difflib.get_close_matches(str(name), list(inner), 1, cutoff=0.8)
            hint = f"did you mean {near[0]!r}?" if near else f"its outputs are {_listed(declared)}"
            raise OptionError(f"outputs: the model has no output {name!r}", hint)
    if len(set(selection)) < len(selection):
        twice = next(name for name in selection if list(selection).count(name) > 1)
        raise OptionError(f"outputs: {twice!r} is named twice")
    return list(selection)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def with_rewritten_main(mod: IRModule, function: Callable[[BlockBuilder], Function], what: str) -> IRModule:
    """Replace the module's main function, converted to dataflow form without dead code.

    Args:
        function: builds the main function; kernels that it emits are added to the module.
        what: a description of the module for the error: "the module with a capacity".

    Raises InternalError if the module is not well formed.
    """
    builder = relax.BlockBuilder(
        IRModule({var: each for var, each in mod.functions_items() if var.name_hint != "main"})
    )
    builder.add_func(function(builder), "main")
    result = IRModule(dict(builder.finalize().functions_items()), attrs=mod.attrs, global_infos=mod.global_infos)
    result = relax.transform.DeadCodeElimination(["main"])(relax.transform.ConvertToDataflow(1)(result))
    try:
        relax.analysis.well_formed(result)
    except Exception as error:  # any TVM error here is a bug in the rewrite
        raise InternalError(f"{what} is not well formed: {error}") from error
    return result
