"""`Cascade`: a small model answers, except for uncertain rows, which a large model answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compiler.artifact import TensorDescription
from compiler.errors import OptionError, OverloadedError
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.policies.cascade_calibration import CascadeCalibration, read_cascade, score_of
from compiler.serving.request import Array, Request, Response, Timing
from compiler.serving.rows import check_batched, check_same_interface, joined, row_count, with_rows
from compiler.serving.service import Service, Wrapper, identity_of


class Cascade(Wrapper):
    """Two models under the large one's name. Rows of a batch are decided one by one.

    With `feeds` the large model continues where the small one stopped (an early exit): the given inputs are outputs of
    the small one, so that nothing is computed twice.

    Answers have the notes "large_rows", "cascade_score" (the lowest of the request's rows), and "accuracy". A request
    for more accuracy than was calibrated goes directly to the large model. If the large model's queue is full, the
    small one's answer is returned and noted as "degraded", unless the level asks for more accuracy than that.
    """

    def __init__(
        self,
        small: Service,
        large: Service,
        calibration: CascadeCalibration,
        observer: Observer = NO_OBSERVER,
        *,
        feeds: Mapping[str, str] | None = None,
    ) -> None:
        """Combine two models. Raises OptionError if there is no calibration, or the models do not fit together.

        Args:
            calibration: the score and its threshold, with the measured cost and accuracy.
            feeds: inputs of the large model that are outputs of the small one.
        """
        if not isinstance(calibration, CascadeCalibration):
            raise OptionError(
                "a cascade does not start without a calibration", "make one of data: `tensorwright calibrate cascade`"
            )
        super().__init__(large)
        self.small, self.large, self.calibration = small, large, calibration
        measured = {"small": (small, calibration.small_identity), "large": (large, calibration.large_identity)}
        for which, (service, identity) in measured.items():
            if identity and identity != identity_of(service):
                raise OptionError(
                    f"the calibration of cascade {large.name!r} was made with another {which} module",
                    "name the modules that it was made with, or make it again: `tensorwright calibrate cascade`",
                )
        self._feeds = dict(feeds or {})
        self._score = score_of(calibration.score, calibration.output)
        self._observer = observer

    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        """The inputs of a request: those of the small model, and unfed ones of the large model."""
        others = {each.name: each for each in self.large.inputs if each.name not in self._feeds}
        return (*self.small.inputs, *(each for name, each in others.items() if name not in _names(self.small.inputs)))

    @property
    def identity(self) -> str:
        """A digest of both models and of the threshold."""
        return f"{identity_of(self.small)}>{self.calibration.threshold}>{identity_of(self.large)}"

    @property
    def reference(self) -> Service:
        """The reference model of comparisons: the large one."""
        return self.large

    async def start(self) -> None:
        """Start both. Raises OptionError if they do not fit together."""
        await self.small.start()
        await self.large.start()
        check_batched(self.small, "a cascade")
        check_batched(self.large, "a cascade")
        offered = _names(self.small.outputs)
        lacking = [name for name in (*_names(self.large.outputs), *self._feeds.values()) if name not in offered]
        unknown = [name for name in self._feeds if name not in _names(self.large.inputs)]
        if unknown:
            raise OptionError(
                f"feeds of cascade {self.name!r} name {unknown}, which the large model does not take",
                f"its inputs are {', '.join(_names(self.large.inputs))}",
            )
        if lacking:
            raise OptionError(
                f"the small model of cascade {self.name!r} has outputs {list(offered)}, and not {lacking}",
                "both have to give the same outputs, and the small one those that the large one goes on with",
            )
        if not self._feeds:
            given = tuple(each for each in self.small.outputs if each.name in _names(self.large.outputs))
            check_same_interface([self.large, _Interface(self.small.name, self.small.inputs, given)], "a cascade")

    async def close(self) -> None:
        """Close both."""
        await self.small.close()
        await self.large.close()

    async def infer(self, request: Request) -> Response:
        """Answer with the small model, and with the large one if the score is below the threshold."""
        calibration = self.calibration
        if request.level.min_accuracy > calibration.accuracy and not self._feeds:
            return (await self.large.infer(request))._replace(notes={"accuracy": 1.0, "route": "large"})
        count = row_count(request.inputs)
        output_names = request.outputs if request.outputs is not None else _names(self.large.outputs)
        first = await self.small.infer(self._for_small(request, output_names))
        scores = self._score(first.outputs)
        certain = scores >= calibration.threshold
        if request.level.min_accuracy > calibration.accuracy:
            certain[:] = False
        rows = np.flatnonzero(~certain).tolist()
        self._observer.observe_route(self.name, "small", count - len(rows))
        notes = {**first.notes, "large_rows": float(len(rows)), "accuracy": calibration.accuracy}
        if count:
            notes["cascade_score"] = float(scores.min())
        answer = {name: first.outputs[name] for name in output_names}
        if not rows:
            return first._replace(outputs=answer, notes=notes)
        try:
            second = await self.large.infer(self._for_large(request, first, rows, output_names))
        except OverloadedError:
            if request.level.min_accuracy > calibration.small_accuracy:
                raise
            notes |= {"degraded": 1.0, "large_rows": 0.0, "accuracy": calibration.small_accuracy}
            return first._replace(outputs=answer, notes=notes)
        self._observer.observe_route(self.name, "large", len(rows))
        return self._joined(answer, first, second, rows, notes)

    def _for_small(self, request: Request, wanted: Sequence[str]) -> Request:
        needed = {*wanted, self.calibration.output, *self._feeds.values()}
        taken = _names(self.small.inputs)
        inputs = {name: array for name, array in request.inputs.items() if name in taken or not self._feeds}
        return request._replace(inputs=inputs, outputs=tuple(sorted(needed)))

    def _for_large(self, request: Request, first: Response, rows: list[int], output_names: Sequence[str]) -> Request:
        inputs = dict(request.inputs)
        if self._feeds:
            inputs = {name: array for name, array in inputs.items() if name in _names(self.large.inputs)}
            inputs |= {name: first.outputs[output] for name, output in self._feeds.items()}
        return with_rows(request._replace(inputs=inputs, outputs=tuple(output_names)), rows)

    def _joined(
        self,
        answer: Mapping[str, Array],
        first: Response,
        second: Response,
        rows: list[int],
        notes: Mapping[str, str | float],
    ) -> Response:
        count = len(next(iter(answer.values())))
        small_rows = sorted(set(range(count)) - set(rows))
        parts = [(rows, second.outputs)]
        if small_rows:
            parts.append((small_rows, {name: array[np.asarray(small_rows)] for name, array in answer.items()}))
        small, large = first.timing, second.timing
        timing = Timing(
            max(small.queued, large.queued - small.computed),  # which also counts from the request's arrival
            small.computed + large.computed,
            max(small.batch_rows, large.batch_rows),
            max(small.ended, large.ended),
        )
        served = f"{first.served_by}+{second.served_by}" if small_rows else second.served_by
        events = (*first.events, *second.events)
        return Response(joined(parts, count), served, timing, None, {**second.notes, **notes}, events)


@dataclass(frozen=True, kw_only=True)
class CascadeOptions:
    """Options of a cascade whose large model is the served one.

    Attributes:
        small: the small model's module.
        calibration: the file that `tensorwright calibrate cascade` wrote for both.
        feeds: inputs of the large model that are outputs of the small one.
    """

    small: Path
    calibration: Path
    feeds: Mapping[str, str] = field(default_factory=dict)


def build(options: CascadeOptions, inner: Service, parts: Parts) -> Service:
    """Build a cascade in front of `inner`, the large model. Raises as loading a module, and as `Cascade`."""
    calibration = read_cascade(options.calibration)
    small = parts.make(options.small, "small")
    return Cascade(small, inner, calibration, parts.observer, feeds=options.feeds)


@dataclass(frozen=True)
class _Interface:
    """The interface of a service, for comparisons."""

    name: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]


def _names(tensors: Sequence[TensorDescription]) -> tuple[str, ...]:
    return tuple(each.name for each in tensors)
