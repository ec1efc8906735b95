"""`Control`: what changes the models of a server, in this process or in all of its processes."""

from __future__ import annotations

from typing import Protocol

from compiler.serving.repository import Repository


class Control(Protocol):
    """Loads and unloads models for the whole server."""

    @property
    def draining(self) -> bool:
        """True if the server is shutting down: it answers what it has accepted, and is not ready for more."""

    async def load(self, name: str) -> None:
        """Have the newest version of a model answer, in all processes or in none. Raises as `Repository.load`."""

    async def unload(self, name: str) -> None:
        """Have a model answer no longer. Raises as `Repository.unload`."""


class LocalControl:
    """The control of a server that is this process alone."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.draining = False

    async def load(self, name: str) -> None:
        """See `Control`."""
        await self._repository.load(name)

    async def unload(self, name: str) -> None:
        """See `Control`."""
        await self._repository.unload(name)
