"""What every frontend returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tvm

from compiler.support.notebook import shortened


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and data type of one input or output.

    A dimension is an int, or a str: a symbolic dimension's name, or the expression of one (`"batch*2"`). `carrier` is
    the type that the module has for it where that is not `dtype`: the values of a narrow integer in a byte, or the bits
    of a narrow float in one.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    carrier: Literal["int8", "uint8"] | None = None

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class SizeRequirement:
    """A relation between symbolic sizes of the inputs without which the model cannot run.

    Attributes:
        left, right: formulas (`compiler.support.formula`) of the names in `symbols`.
        relation: "equal"; "at least": left >= right; "broadcast": left is right, or one of them is 1.
        symbols: the symbolic dimension that each name stands for.
        where: what needs it, in the words of a message.
    """

    left: str
    relation: Literal["equal", "at least", "broadcast"]
    right: str
    symbols: dict[str, str]
    where: str


@dataclass(frozen=True)
class IndexRequirement:
    """An input whose elements must lie in [least, size); a `least` of None is -size; otherwise as above."""

    input: str
    size: str
    symbols: dict[str, str]
    where: str
    least: str | None = None


@dataclass(frozen=True)
class ImportedModel:
    """A model as a Relax module.

    `mod["main"]` takes the runtime inputs in the order of `inputs` and returns a tuple in the order of `outputs`;
    weights are embedded constants. `fixed` holds the model inputs whose values were fixed while importing: they are
    no runtime inputs any more. `requirements` and `indices` are checked when a run begins; `checks` says what the
    checks of sizes in the module are for: the one that binds the variable `check_N_` is for `checks[N]`. `notes` are
    lines for the user about results that differ from what the model declares.
    """

    mod: tvm.IRModule
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    fixed: dict[str, np.ndarray] = field(default_factory=dict)
    requirements: tuple[SizeRequirement, ...] = ()
    indices: tuple[IndexRequirement, ...] = ()
    checks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        inputs, outputs = (shortened(specs, separator="; ") for specs in (self.inputs, self.outputs))
        return f"<{type(self).__name__} ({inputs}) -> ({outputs})>"
