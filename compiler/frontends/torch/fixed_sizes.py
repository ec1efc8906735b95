"""Dynamic sizes that the decomposition of an operator fixed.

`torch.export` refuses models that do so. What is traced later, for the decomposition of an operator, adds conditions on
sizes silently, and is right for sizes that meet them alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.errors import Refusal, UnsupportedModelError

if TYPE_CHECKING:
    import torch


class OpenSizes:
    """The dynamic sizes of a program's inputs, and the conditions on them that it came with."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._places: dict[Any, str] = {}
        self._environment: Any = None
        for node in program.graph.nodes:
            value = node.meta.get("val")
            mode = getattr(value, "fake_mode", None)
            if node.op != "placeholder" or mode is None or mode.shape_env is None:
                continue
            self._environment = mode.shape_env
            for axis, size in enumerate(value.shape):
                expr = getattr(getattr(size, "node", None), "expr", None)
                for symbol in getattr(expr, "free_symbols", ()):  # of 32*s, too
                    self._places.setdefault(symbol, f"dimension {axis} of {node.name}")
        self._known = 0 if self._environment is None else len(self._environment.guards)

    def refuse_fixed(self) -> None:
        """Raise UnsupportedModelError where an equation with one of them was added since."""
        added = () if self._environment is None else self._environment.guards[self._known :]
        equations = [guard.expr for guard in added if getattr(guard.expr, "rel_op", None) == "=="]
        fixed = [
            Refusal(
                "dynamic size", place, f"an operator of the model is written for sizes where {each.lhs} = {each.rhs}"
            )
            for symbol, place in self._places.items()
            for each in [next((each for each in equations if symbol in each.free_symbols), None)]
            if each is not None
        ]
        if fixed:
            raise UnsupportedModelError(fixed, "leave these dimensions out of dynamic_shapes")
