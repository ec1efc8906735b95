"""`Observer`: receives events of policies for the metrics; it is passed to each policy."""

from __future__ import annotations

from typing import Protocol


class Observer(Protocol):
    """Counts what policies decide. Called in the event loop or in threads; must neither block nor raise."""

    def observe_cache(self, model: str, cache: str, hits: int, rows: int) -> None:
        """A request looked `rows` up in a cache ("exact", "embedding", "semantic") and found `hits` of them."""

    def observe_cache_failure(self, model: str, cache: str) -> None:
        """A cache could not be read or written (a full disk); the request is answered without it."""

    def observe_variant(self, model: str, variant: str, rows: int) -> None:
        """`rows` rows were answered by a variant."""

    def observe_degradation(self, model: str, level: int) -> None:
        """Overload moved answers to the variant `level` steps below the best; 0 is normal operation."""

    def observe_route(self, model: str, route: str, rows: int) -> None:
        """A router or a cascade sent `rows` rows to a route."""

    def observe_drift(self, model: str, value: float, *, exceeded: bool) -> None:
        """The mean drift against the reference variant, and whether it is beyond its limit."""


class NoObserver:
    """An `Observer` that counts nothing."""

    def observe_cache(self, model: str, cache: str, hits: int, rows: int) -> None:
        """See `Observer`."""

    def observe_cache_failure(self, model: str, cache: str) -> None:
        """See `Observer`."""

    def observe_variant(self, model: str, variant: str, rows: int) -> None:
        """See `Observer`."""

    def observe_degradation(self, model: str, level: int) -> None:
        """See `Observer`."""

    def observe_route(self, model: str, route: str, rows: int) -> None:
        """See `Observer`."""

    def observe_drift(self, model: str, value: float, *, exceeded: bool) -> None:
        """See `Observer`."""


NO_OBSERVER = NoObserver()
