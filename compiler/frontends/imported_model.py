"""What every frontend returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import tvm


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and data type of one input or output.

    A dimension is an int, or a str: a symbolic dimension's name, or the expression of one (`"batch*2"`).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ImportedModel:
    """A model as a Relax module.

    `mod["main"]` takes the runtime inputs in the order of `inputs` and returns a tuple in the order of `outputs`;
    weights are embedded constants. `fixed` holds the model inputs whose values were fixed while importing: they are
    no runtime inputs any more.
    """

    mod: tvm.IRModule
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    fixed: dict[str, np.ndarray] = field(default_factory=dict)
