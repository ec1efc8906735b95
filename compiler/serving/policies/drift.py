"""`Drift`: also runs a fraction of the requests on the reference variant, and reports differences beyond a limit."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compiler.errors import OptionError, TensorwrightError
from compiler.serving.caches.digests import request_digest
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Array, Request, Response
from compiler.serving.service import Service, Wrapper, identity_of

_MEASURES = ("cosine", "absolute", "labels")
_PENDING = 4
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DriftOptions:
    """Options of drift monitoring.

    Attributes:
        limit: the mean drift beyond which the metric is incremented.
        share: fraction of requests that also run on the reference, chosen by the digest of their inputs.
        measure: drift of a request: "cosine": 1 - the least cosine of a row with the reference's; "absolute": the
            largest difference relative to the reference's largest value; "labels": the fraction of rows whose largest
            value is elsewhere.
        window: number of the last comparisons of which the mean is taken.
        least: number of comparisons before the limit is applied.
        switch_back: answer with the reference from then on.
        reference: the reference module; None: the reference of the variants, or the large model of the cascade.
    """

    limit: float
    share: float = 0.01
    measure: str = "cosine"
    window: int = 200
    least: int = 20
    switch_back: bool = False
    reference: Path | None = None

    def __post_init__(self) -> None:
        """Raises OptionError for values out of range."""
        if self.measure not in _MEASURES:
            raise OptionError(f"measure={self.measure!r}", f"known: {', '.join(_MEASURES)}")
        if not 0 < self.share <= 1 or self.limit < 0 or not 1 <= self.least <= self.window:
            raise OptionError(
                f"share={self.share}, limit={self.limit}, least={self.least}, window={self.window}",
                "a share above 0 up to 1, a limit of 0 or more, and least of 1 up to window",
            )


class Drift(Wrapper):
    """A service that compares some of its answers with a reference in the background.

    Once the limit is exceeded and if `switch_back` is set, the reference answers until `reset`; these answers have the
    note "switched_back".
    """

    def __init__(
        self,
        inner: Service,
        reference: Service,
        options: DriftOptions,
        observer: Observer = NO_OBSERVER,
        *,
        owned: bool = True,
    ) -> None:
        """`owned`: `reference` is started and closed here; otherwise it belongs to `inner`."""
        super().__init__(inner)
        self._reference, self._options, self._observer, self._owned = reference, options, observer, owned
        self._values: deque[float] = deque(maxlen=options.window)
        self._comparing: set[asyncio.Task[None]] = set()
        self.switched_back = False

    @property
    def identity(self) -> str:
        """Identity of the answering model; it changes when the reference takes over."""
        return identity_of(self._reference if self.switched_back else self.inner)

    @property
    def value(self) -> float:
        """The mean drift of the last comparisons; 0 before the first."""
        return float(np.mean(self._values)) if self._values else 0.0

    @property
    def exceeded(self) -> bool:
        """True if the mean is beyond the limit."""
        return len(self._values) >= self._options.least and self.value > self._options.limit

    def reset(self) -> None:
        """Forget the comparisons, and answer as before."""
        self._values.clear()
        self.switched_back = False

    async def start(self) -> None:
        """Start both."""
        await self.inner.start()
        if self._owned:
            await self._reference.start()

    async def close(self) -> None:
        """Finish the running comparisons, and close both."""
        await asyncio.gather(*self._comparing)
        await self.inner.close()
        if self._owned:
            await self._reference.close()

    async def infer(self, request: Request) -> Response:
        """Return the inner service's answer, or the reference's after a switch."""
        if self.switched_back:
            response = await self._reference.infer(request)
            return response._replace(notes={**response.notes, "accuracy": 1.0, "switched_back": 1.0})
        response = await self.inner.infer(request)
        if self._sampled(request) and len(self._comparing) < _PENDING:
            # The receiver owns the arrays of its answer, and may write to them.
            own = {name: np.array(array) for name, array in response.outputs.items()}
            task = asyncio.get_running_loop().create_task(self._compare(request, own))
            self._comparing.add(task)
            task.add_done_callback(self._comparing.discard)
        return response

    def _sampled(self, request: Request) -> bool:
        digest = request_digest("drift", request.inputs, None)
        return int(digest[:8], 16) < self._options.share * 2**32

    async def _compare(self, request: Request, outputs: Mapping[str, Array]) -> None:
        # Nobody waits for this answer, so it has no deadline.
        asked = request._replace(deadline=None, outputs=tuple(outputs), traced=False)
        try:
            reference = await self._reference.infer(asked)
        except TensorwrightError as error:
            _log.info("model %s: the reference did not answer for a comparison: %s", self.name, error.message)
            return
        self._values.append(drift_of(outputs, reference.outputs, self._options.measure))
        exceeded = self.exceeded
        self._observer.observe_drift(self.name, self.value, exceeded=exceeded)
        if exceeded and self._options.switch_back and not self.switched_back:
            self.switched_back = True
            _log.warning(
                "model %s: drift %.6g is beyond %.6g: the reference answers", self.name, self.value, self._options.limit
            )


def drift_of(outputs: Mapping[str, Array], reference: Mapping[str, Array], measure: str) -> float:
    """Return the largest distance of any output from the reference; see `DriftOptions.measure`.

    Values that are not finite although the reference is count as 1.
    """
    return max(
        (_drift(np.asarray(outputs[name]), np.asarray(reference[name]), measure) for name in reference), default=0
    )


def _drift(got: Array, expected: Array, measure: str) -> float:
    if got.shape != expected.shape:
        return 1.0
    rows = len(got) if got.ndim else 1
    actual, reference = (array.reshape(rows, -1).astype(np.float64) for array in (got, expected))
    if not actual.size:
        return 0.0
    if measure == "labels":
        return float((actual.argmax(axis=1) != reference.argmax(axis=1)).mean())
    if not np.array_equal(np.isfinite(actual), np.isfinite(reference)):
        return 1.0
    actual, reference = (np.where(np.isfinite(array), array, 0.0) for array in (actual, reference))
    if measure == "absolute":
        largest = float(np.abs(reference).max())
        return float(np.abs(actual - reference).max()) / largest if largest else float(np.abs(actual).max() > 0)
    norms = np.linalg.norm(actual, axis=1) * np.linalg.norm(reference, axis=1)
    cosines = np.divide((actual * reference).sum(axis=1), norms, out=np.zeros(rows), where=norms > 0)
    cosines[norms == 0] = (actual[norms == 0] == reference[norms == 0]).all(axis=1)
    return float(np.clip(1.0 - cosines.min(), 0.0, 2.0))


def build(options: DriftOptions, inner: Service, parts: Parts) -> Service:
    """Build the monitor around `inner`. Raises OptionError if there is no reference."""
    if options.reference is not None:
        return Drift(inner, parts.make(options.reference, "reference"), options, parts.observer)
    reference = getattr(inner, "reference", None)
    if reference is None:
        raise OptionError(
            f"model {inner.name!r} has no reference to measure drift against",
            "name a module (reference:), or serve a folder of variants or a cascade",
        )
    return Drift(inner, reference, options, parts.observer, owned=False)
