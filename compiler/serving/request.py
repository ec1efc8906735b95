"""Requests and responses of services: named tuples, which take a tenth of the time of frozen dataclasses to make."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray
_NO_NOTES: Mapping[str, str | float] = MappingProxyType({})


class ServiceLevel(NamedTuple):
    """Service-level requirements of a request.

    Attributes:
        latency_ms: the most milliseconds from the arrival of the request to its answer; None: no limit.
        min_accuracy: the least accuracy of the variant that answers, as a share of the reference variant's (0 to 1).
        max_cost: the most processor milliseconds that a row may cost; None: no limit.
    """

    latency_ms: float | None = None
    min_accuracy: float = 0.0
    max_cost: float | None = None


ANY_LEVEL = ServiceLevel()
"""A client that wants nothing in particular."""


class Request(NamedTuple):
    """One request to a service.

    Attributes:
        inputs: by name; shapes and element types as the service's `inputs` say, the batch dimension included.
        outputs: which outputs are wanted; None: all.
        arrival: seconds of `time.monotonic()` when the request was received.
        deadline: seconds of `time.monotonic()` after which the answer is of no use; None: no limit.
        margin: seconds before the deadline at which its run has to end for the answer to be there in time; whether it
            is accepted depends on it.
        level: what else the client wants; routers read it.
        id: the client's own name of the request, given back with the answer.
        traced: the answer's trace holds the kernels' profile.
    """

    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] | None = None
    arrival: float = 0.0
    deadline: float | None = None
    level: ServiceLevel = ANY_LEVEL
    id: str = ""
    traced: bool = False
    margin: float = 0.0


class Timing(NamedTuple):
    """Seconds that each part of a request took.

    Attributes:
        queued: from arrival until its batch was taken.
        computed: the run of its batch.
        batch_rows: rows of the batch that it ran in, its own included; 0 where nothing ran (a cached answer).
        ended: seconds of `time.monotonic()` when its last run ended; 0 where nothing ran.
    """

    queued: float = 0.0
    computed: float = 0.0
    batch_rows: int = 0
    ended: float = 0.0


NOT_RUN = Timing()


class Response(NamedTuple):
    """An answer.

    Attributes:
        outputs: by name; arrays that the receiver owns.
        served_by: the variant that computed it, as "name/version/variant" ("minilm/2/int8").
        timing: where the time went.
        cached: the name of the cache that answered ("exact", "embedding", "semantic"); None: it was computed.
        notes: what services on the way add for the client and for logs (the score of a cascade's first model, ...).
        events: spans for a trace where the request asked for one, in Chrome's trace event format.
    """

    outputs: Mapping[str, Array]
    served_by: str
    timing: Timing = NOT_RUN
    cached: str | None = None
    notes: Mapping[str, str | float] = _NO_NOTES
    events: tuple[Mapping[str, Any], ...] = ()
