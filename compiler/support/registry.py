"""Functions and implementations of interfaces registered by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from compiler.errors import OptionError
from schedules.discovery import import_all

Made = TypeVar("Made")
Function = TypeVar("Function")


def registers_in(table: dict[str, Function], prefix: str = "") -> Callable[..., Callable[[Function], Function]]:
    """A decorator that adds functions to `table` under the given names, each prefixed with `prefix`."""

    def named(*names: str) -> Callable[[Function], Function]:
        def register(function: Function) -> Function:
            table.update((prefix + name, function) for name in names)
            return function

        return register

    return named


class Registry(Generic[Made]):
    """Factories by name: built-in ones in the modules of a package, third-party ones by entry point.

    Args:
        what: the name of the interface, for messages.
        package: every module in it is imported at the first lookup.
        group: the entry point group for other packages.
    """

    def __init__(self, what: str, package: str, group: str) -> None:
        self._what, self._package, self._group = what, package, group
        self._factories: dict[str, Callable[..., Made]] = {}
        self._searched = False

    def register(self, name: str) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
        """Decorate a class or factory function."""

        def add(factory: Callable[..., Made]) -> Callable[..., Made]:
            self._factories[name] = factory
            return factory

        return add

    def names(self) -> list[str]:
        """All names, sorted."""
        self._search()
        return sorted(self._factories)

    def make(self, name: str, **options: object) -> Made:
        """The implementation with that name. Raises OptionError if the name is unknown."""
        self._search()
        if name not in self._factories:
            raise OptionError(f"there is no {self._what} {name!r}", f"use one of {', '.join(self.names())}")
        return self._factories[name](**options)

    def _search(self) -> None:
        if self._searched:
            return
        self._searched = True
        import_all(self._package)
        for entry in entry_points(group=self._group):
            self._factories.setdefault(entry.name, entry.load())
