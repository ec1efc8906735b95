"""The results of modules inside of a net, and matching those of a student to those of its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from compiler.errors import OptionError

if TYPE_CHECKING:
    import torch


class Watched:
    """Keeps the last result of the named modules while it is open."""

    def __init__(self, net: torch.nn.Module, names: Sequence[str], whose: str) -> None:
        modules = dict(net.named_modules())
        for name in names:
            if name not in modules:
                known = ", ".join(each for each in modules if each)
                raise OptionError(f"the {whose} has no module {name!r}", f"there are {known}")
        self._names = list(names)
        self._modules = [modules[name] for name in names]
        self._whose = whose
        self._results: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Watched:
        for index, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._keep(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep(self, index: int) -> Any:
        def hook(module: Any, inputs: Any, result: Any) -> None:
            self._results[index] = result[0] if isinstance(result, tuple | list) else result

        return hook

    def take(self) -> list[torch.Tensor]:
        """The results of the last run, in the order of the names. Raises OptionError for a module that did not run."""
        for index, name in enumerate(self._names):
            if index not in self._results:
                raise OptionError(f"the {self._whose}'s module {name!r} did not run", "name a module of its forward")
        return [self._results.pop(index) for index in range(len(self._names))]


def make_projection(student: torch.Tensor, teacher: torch.Tensor) -> torch.nn.Module:
    """A learned map from the student's width to the teacher's (Romero et al., FitNets, arXiv:1412.6550), trained with
    the student and thrown away.

    Features are (batch, channels, *spatial) with the same spatial sizes, or (batch, ..., width).

    Raises:
        OptionError: their sizes differ in anything but the width.
    """
    import torch

    own, wanted = tuple(student.shape), tuple(teacher.shape)
    if own == wanted:
        return torch.nn.Identity()
    if len(own) == len(wanted) and own[:-1] == wanted[:-1]:
        return torch.nn.Linear(own[-1], wanted[-1])
    convolutions = {3: torch.nn.Conv1d, 4: torch.nn.Conv2d, 5: torch.nn.Conv3d}
    if len(own) == len(wanted) and own[2:] == wanted[2:] and len(own) in convolutions:
        return convolutions[len(own)](own[1], wanted[1], 1)
    raise OptionError(
        f"features of sizes {list(own)} (student) and {list(wanted)} (teacher) can not be matched",
        "name pairs of modules whose results differ in their channels alone",
    )
