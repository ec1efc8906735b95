"""Requests in flight: slow bodies time out, and requests of disconnected clients are cancelled.

One timer checks all requests; only long ones have a task or a timer of their own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from compiler.serving.app.http import Receive

_PERIOD = 0.25  # seconds


@dataclass(eq=False)
class Flight:
    """One request.

    Attributes:
        until: when its body has to be complete, by the loop's clock in seconds; None once it is.
        expired: its body did not come in time.
        gone: its client went away.
    """

    task: asyncio.Task[object]
    receive: Receive
    until: float | None
    expired: bool = False
    gone: bool = False
    watched: bool = True
    watcher: asyncio.Task[None] | None = None


class Inflight:
    """All requests of an application."""

    def __init__(self) -> None:
        self._flights: set[Flight] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._flights)

    def begin(self, task: asyncio.Task[object], receive: Receive, until: float) -> Flight:
        """Note a request whose body has to be complete by then."""
        flight = Flight(task, receive, until)
        self._flights.add(flight)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PERIOD, self._look)
        return flight

    def end(self, flight: Flight) -> None:
        """It is answered."""
        self._flights.discard(flight)
        if flight.watcher is not None:
            flight.watcher.cancel()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_PERIOD, self._look) if self._flights else None
        now = loop.time()
        for flight in self._flights:
            if flight.until is not None:
                if now > flight.until and not flight.expired:
                    flight.expired = True
                    flight.task.cancel()
            elif flight.watched and flight.watcher is None:
                flight.watcher = loop.create_task(_watch(flight))


async def _watch(flight: Flight) -> None:
    """Cancel a request when its client goes away."""
    while (await flight.receive())["type"] != "http.disconnect":
        pass
    flight.gone = True
    flight.task.cancel()
