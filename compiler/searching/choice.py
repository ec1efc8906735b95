"""`choice`: a block of a supernet for which a search selects one of several forms. Needs torch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from compiler.errors import OptionError

if TYPE_CHECKING:
    from compiler.searching.knobs import Option


class Choice(nn.ModuleList):
    """A block with several forms; `selected` is the one that computes. All have tensors of the same shapes."""

    selected: int

    def __init__(self, forms: list[nn.Module]) -> None:
        super().__init__(forms)
        self.selected = len(forms) - 1

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Apply the selected form."""
        return self[self.selected](*inputs, **named)


def choice(*forms: nn.Module) -> Choice:
    """A block of a net for which `search` selects one form; the last one is the original net's.

    With `nn.Identity()` among the forms, the block can be removed. Channels and layers inside the forms can be
    searched, too.

    Args:
        forms: at least two modules with inputs and outputs of equal shapes.

    Raises:
        OptionError: there are fewer than two, or one is not a module.
    """
    wrong = [type(form).__name__ for form in forms if not isinstance(form, nn.Module)]
    if wrong or len(forms) < 2:
        raise OptionError(
            f"choice() has {wrong[0] if wrong else len(forms)}", "give two torch.nn.Modules or more: choice(a, b)"
        )
    return Choice(list(forms))


def choices_of(net: nn.Module) -> dict[str, Choice]:
    """The choices of a net by the names of their modules."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Choice)}


def select(net: nn.Module, config: Mapping[str, Option]) -> None:
    """Let each choice compute the form in the config, or its last form if there is none."""
    for name, block in choices_of(net).items():
        block.selected = int(config.get(f"choice {name}", len(block) - 1))


def materialized(net: nn.Module, config: Mapping[str, Option]) -> nn.Module:
    """A copy that shares its parameters with the net and contains only the selected forms, under the same names."""
    memo: dict[int, Any] = {id(each): each for each in [*net.parameters(), *net.buffers()]}
    result = copy.deepcopy(net, memo)
    select(result, config)
    for block in choices_of(result).values():
        for index in range(len(block)):
            if index != block.selected:
                block[index] = nn.Identity().train(block.training)
    return result
