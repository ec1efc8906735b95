"""What a pass may know about the compilation it is part of, and where it leaves what is not code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compiler.passes.rewriting.expansion import Expansions


@dataclass
class PipelineContext:
    """The compilation a pass takes part in.

    Attributes:
        target: a `targets.Target`, or None for the engine's plain CPU.
        machine: a `schedules.machine.Machine`, or None: then nothing is scheduled.
        options: options of passes by name; each pass says which ones it reads ("checks": what checks of sizes are for).
        shape_bounds: upper bound of a symbolic dimension, by its name; used in planning memory.
        configs: configurations of kernels from tuning records, handed to the schedule rules as they are.
        choose: a `schedules.selection.alternatives.Choice` of algorithms for convolutions; the estimated one when None.
        parameters: filled by `lift-parameters`: the trailing parameters of `main`, in order, by name.
        expansions: which constants can be stored in a smaller form; those that are come last in `parameters`.
        reports: what passes have to say about the module, by the name of the pass.
    """

    target: Any = None
    machine: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)
    shape_bounds: Mapping[str, int] = field(default_factory=dict)
    configs: Any = None
    choose: Any = None
    parameters: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    expansions: Expansions = field(default_factory=Expansions)
    reports: dict[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any) -> Any:
        """The option `name`, or `default` when the caller did not set it."""
        return self.options.get(name, default)
