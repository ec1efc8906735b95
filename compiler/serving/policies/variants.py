"""`Variants`: several modules of one model under one name. A request's level chooses; overload degrades.

The switch to cheaper variants under overload, and back, has hysteresis and does not depend on a clock.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compiler.artifact.variants import VariantIndex, read_variants
from compiler.errors import ArtifactError, InputError, OptionError, OverloadedError
from compiler.runtime import Module, load
from compiler.runtime.identity import module_identity
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.request import Request, Response
from compiler.serving.rows import check_same_interface
from compiler.serving.service import Service, Wrapper, identity_of
from targets.processors import usable_cores


@dataclass(frozen=True, kw_only=True)
class DegradationOptions:
    """Options of degradation.

    Attributes:
        degrade_at_ms: queued work per core above which requests move to cheaper variants.
        restore_at_ms: queued work per core below which they move back.
        degrade_after: consecutive requests above the limit before a step to the next cheaper variant.
        restore_after: consecutive requests below the limit before a step back.
    """

    degrade_at_ms: float = 100.0
    restore_at_ms: float = 25.0
    degrade_after: int = 4
    restore_after: int = 32

    def __post_init__(self) -> None:
        """Raises OptionError for numbers without hysteresis, or below 1."""
        if not 0 <= self.restore_at_ms < self.degrade_at_ms:
            raise OptionError(
                f"restore_at_ms={self.restore_at_ms} and degrade_at_ms={self.degrade_at_ms}",
                "the first must be less, so that answers do not change with each request",
            )
        if min(self.degrade_after, self.restore_after) < 1:
            raise OptionError(f"degrade_after={self.degrade_after}, restore_after={self.restore_after}", "1 at least")


class Degradation:
    """Degree of degradation, 0 for none. Depends only on the observed loads."""

    def __init__(self, options: DegradationOptions, levels: int) -> None:
        """`levels`: number of degradation steps."""
        self._options, self._levels = options, levels
        self._above = self._below = 0
        self.level = 0

    def observe(self, waiting_ms: float) -> int:
        """Return the level for a request that finds this much queued work per core."""
        options = self._options
        self._above = self._above + 1 if waiting_ms > options.degrade_at_ms else 0
        self._below = self._below + 1 if waiting_ms < options.restore_at_ms else 0
        if self._above >= options.degrade_after and self.level < self._levels:
            self.level, self._above = self.level + 1, 0
        elif self._below >= options.restore_after and self.level:
            self.level, self._below = self.level - 1, 0
        return self.level


Make = Callable[[Module, str], Service]


@dataclass(frozen=True)
class Variant:
    """A module of a model, with its cost and accuracy.

    Attributes:
        accuracy: its score relative to the reference variant.
        cost_ms: processor milliseconds per row.
    """

    name: str
    service: Service
    accuracy: float
    cost_ms: float


class Variants(Wrapper):
    """A service of several variants of one model.

    The most accurate variant whose cost and expected latency the request's level allows answers. Variants that cost as
    much as a more accurate one are never chosen. Overload moves requests to cheaper ones, never below the level's
    `min_accuracy`; a variant whose queue is full passes the request on to the next cheaper one. Each answer names its
    variant ("variant", "accuracy"), and notes if overload chose it ("degraded").
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        options: DegradationOptions | None = None,
        observer: Observer = NO_OBSERVER,
        *,
        waiting_ms: Callable[[], float] | None = None,
        reference: str | None = None,
    ) -> None:
        """Combine variants under the name of the most accurate one. Raises OptionError if there is no variant, two have
        the same name, or their inputs or outputs differ.

        Args:
            waiting_ms: the queued work per core; None: computed from the requests in progress and the variants' costs.
            reference: the variant to compare others with; None: the most accurate.
        """
        if not variants or len({each.name for each in variants}) != len(variants):
            raise OptionError(f"variants {[each.name for each in variants]}", "give one or more, each with its name")
        check_same_interface([each.service for each in variants], "variants")
        self.variants = tuple(sorted(variants, key=lambda each: (-each.accuracy, each.cost_ms)))
        super().__init__(self.variants[0].service)
        self.ranked: list[Variant] = []
        for variant in self.variants:
            if not self.ranked or variant.cost_ms < self.ranked[-1].cost_ms:
                self.ranked.append(variant)
        self._reference = next((each for each in variants if each.name == reference), self.variants[0])
        options = options if options is not None else DegradationOptions()
        self._degradation = Degradation(options, len(self.ranked) - 1)
        self._observer = observer
        self._given = waiting_ms
        self._work_ms, self._cores = 0.0, usable_cores()

    @property
    def reference(self) -> Service:
        """The reference model of comparisons."""
        return self._reference.service

    @property
    def identity(self) -> str:
        """A digest of all variants."""
        return "+".join(identity_of(each.service) for each in self.variants)

    @property
    def waiting_ms(self) -> float:
        """Milliseconds of work per core of the requests in progress."""
        return self._given() if self._given is not None else self._work_ms / self._cores

    async def start(self) -> None:
        """Start all variants."""
        for each in self.variants:
            await each.service.start()

    async def close(self) -> None:
        """Close all variants."""
        await asyncio.gather(*(each.service.close() for each in self.variants))

    async def infer(self, request: Request) -> Response:
        """Answer with the variant chosen by level and load. Raises InputError if no variant is accurate and cheap
        enough, and OverloadedError if the queues of this variant and all cheaper allowed ones are full."""
        waiting = self.waiting_ms
        before = self._degradation.level
        degraded_by = self._degradation.observe(waiting)
        if degraded_by != before:
            self._observer.observe_degradation(self.name, degraded_by)
        allowed, preferred = self._choose(request, waiting, degraded_by)
        for index, variant in enumerate(allowed):
            try:
                response = await self._ask(variant, request)
            except OverloadedError:
                if index == len(allowed) - 1:
                    raise
            else:
                notes = {**response.notes, "variant": variant.name, "accuracy": variant.accuracy}
                if variant is not preferred:
                    notes["degraded"] = 1.0
                return response._replace(notes=notes)
        raise AssertionError("there always is an allowed variant")

    def _choose(self, request: Request, waiting: float, level: int) -> tuple[list[Variant], Variant]:
        """Return the variants to try in order, and the one that would answer without overload."""
        limits, rows = request.level, _rows(request)
        allowed = [
            each
            for each in self.ranked
            if each.accuracy >= limits.min_accuracy and (limits.max_cost is None or each.cost_ms <= limits.max_cost)
        ]
        if not allowed:
            offered = "; ".join(f"{each.name}: {each.accuracy:.4f}, {each.cost_ms:.3g} ms" for each in self.ranked)
            raise InputError(
                f"no variant of model {self.name!r} has an accuracy of {limits.min_accuracy} at a cost of at most"
                f" {limits.max_cost} ms a row",
                f"its variants: {offered}",
            )
        limit = limits.latency_ms
        in_time = [each for each in allowed if limit is None or waiting + each.cost_ms * rows <= limit]
        wanted = in_time[0] if in_time else allowed[-1]
        first = max(allowed.index(wanted), sum(self.ranked.index(each) < level for each in allowed))
        return allowed[min(first, len(allowed) - 1) :], wanted

    async def _ask(self, variant: Variant, request: Request) -> Response:
        rows = _rows(request)
        work = variant.cost_ms * rows
        self._work_ms += work
        try:
            response = await variant.service.infer(request)
        finally:
            self._work_ms -= work
        self._observer.observe_variant(self.name, variant.name, rows)
        return response


def _rows(request: Request) -> int:
    return max((len(array) for array in request.inputs.values() if array.ndim), default=1)


def load_variants(folder: str | os.PathLike[str], make: Make) -> tuple[VariantIndex, list[Variant]]:
    """Load the variants of a folder, and verify the stored example of each.

    Args:
        make: creates the service of a module under the variant's name.

    Raises:
        StorageError, ArtifactError, IncompatibleArtifactError: the index or a module cannot be read or run here.
        ArtifactError: a module is not the one for which the index was written.
        VerificationError: a module does not reproduce the outputs of its example.
    """
    index = read_variants(folder)
    variants = []
    for entry in index.variants:
        path = Path(folder) / entry.file
        module = load(path, verify=True)
        if module_identity(module) != entry.identity:
            raise ArtifactError(
                f"{path} is not the module whose accuracy and cost are in the index",
                "write the folder again: `tensorwright compress --variants`",
            )
        variants.append(Variant(entry.name, make(module, entry.name), entry.accuracy, entry.cost_ms))
    return index, variants
