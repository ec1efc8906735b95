"""Requests and responses of services: named tuples, which are created ten times as fast as frozen dataclasses."""

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
        latency_ms: maximum milliseconds from the arrival of the request to its answer; None: no limit.
        min_accuracy: minimum accuracy of the answering variant, relative to the reference variant (0 to 1).
        max_cost: maximum processor milliseconds per row; None: no limit.
    """

    latency_ms: float | None = None
    min_accuracy: float = 0.0
    max_cost: float | None = None


ANY_LEVEL = ServiceLevel()
"""No requirements."""


class Request(NamedTuple):
    """One request to a service.

    Attributes:
        inputs: by name; shapes and element types as in the service's `inputs`, including the batch dimension.
        outputs: names of the requested outputs; None for all.
        arrival: seconds of `time.monotonic()` when the request was received.
        deadline: seconds of `time.monotonic()` after which the answer is useless; None: no limit.
        margin: seconds before the deadline at which its run must end for the answer to be in time; used to decide on
            acceptance.
        level: other requirements of the client, for routers.
        id: the client's identifier of the request, returned with the answer.
        traced: the answer's trace contains the profile of the kernels.
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
    """Seconds of each part of a request.

    Attributes:
        queued: from arrival until its batch was taken.
        computed: the run of its batch.
        batch_rows: number of rows in its batch; 0 if nothing ran (a cached answer).
        ended: seconds of `time.monotonic()` when its last run ended; 0 if nothing ran.
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
        timing: seconds of each part.
        cached: the name of the cache that answered ("exact", "embedding", "semantic"); None: it was computed.
        notes: information that services add for the client and for logs (the score of a cascade's first model, ...).
        events: spans of a requested trace, in Chrome's trace event format.
    """

    outputs: Mapping[str, Array]
    served_by: str
    timing: Timing = NOT_RUN
    cached: str | None = None
    notes: Mapping[str, str | float] = _NO_NOTES
    events: tuple[Mapping[str, Any], ...] = ()
