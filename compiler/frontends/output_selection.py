"""Selection of the outputs that a module returns."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from compiler.errors import OptionError


def selected_outputs(
    selection: Sequence[str] | None, declared: Sequence[str], inner: Collection[str] = ()
) -> list[str]:
    """The names of `selection` in its order, or all declared outputs without duplicates when it is None.

    Args:
        declared: names of the model's outputs.
        inner: names of other values that can be returned.

    Raises:
        OptionError: no sequence of names, an empty one, a name twice, or one that the model does not have.
    """
    if selection is None:
        return list(dict.fromkeys(declared))
    if isinstance(selection, str) or not isinstance(selection, Sequence):
        raise OptionError(f"outputs= takes a list of names, not {selection!r}", 'as in outputs=["logits"]')
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
