"""Errors of the targets; the driver translates these for the user."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TargetError(Exception):
    """Base of all errors of this package. `hint` tells the user how to fix it."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UnknownTarget(TargetError):  # noqa: N818  (the user-facing class is in compiler.errors)
    """No target has that name; the hint suggests similar ones."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        requested = name.lower().replace("_", "-")
        words = [each for each in names if requested in each.replace("+", "-").split("-")]
        inside = [each for each in names if requested and requested in each]
        near = get_close_matches(requested, names, n=3, cutoff=0.5) or words or inside
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known targets: {', '.join(names)}"
        super().__init__(f"unknown target {name!r}", hint)
        self.name = name
        self.suggestions = tuple(near)


class RegistrationError(TargetError):
    """An entry point of the group `tensorwright.targets` is not a target, or uses a name that is taken."""


class ToolchainMissing(TargetError):  # noqa: N818
    """No program that can link a shared library was found; the hint contains the exact command that installs one."""


class LinkError(TargetError):
    """The linker ran and failed; the message contains its output."""
