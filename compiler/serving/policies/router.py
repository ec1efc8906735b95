"""`Router`: a rule sends each row of a request to one of several models with the same interface."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from compiler.artifact import TensorDescription
from compiler.errors import InputError, OptionError
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.request import Request, Response, Timing
from compiler.serving.rows import check_batched, check_same_interface, joined, row_count, with_rows
from compiler.serving.service import Service, Wrapper, identity_of


class Rule(Protocol):
    """Interface of routing rules."""

    async def routes(self, request: Request, count: int) -> Sequence[str]:
        """Return the route of each of the `count` rows."""


def _check_rule(rule: Rule, inputs: Sequence[TensorDescription]) -> None:
    """Raise OptionError for a rule that cannot read the model's inputs."""
    if isinstance(rule, LengthRule):
        _check_has(rule.tensor, inputs, "the model has no input", "its inputs are")
    elif isinstance(rule, ModelRule):
        _check_has(rule.output, rule.judge.outputs, "the router's judge has no output", "its outputs are")
        for each in rule.judge.inputs:
            _check_has(each.name, inputs, "the router's judge reads what the model does not take, input", "that takes")


def _check_has(name: str, tensors: Sequence[TensorDescription], problem: str, has: str) -> None:
    names = [each.name for each in tensors]
    if name not in names:
        raise OptionError(f"{problem} {name!r}", f"{has} {', '.join(names)}")


@dataclass(frozen=True)
class Step:
    """A route for complexities up to a limit (infinity for the last one)."""

    route: str
    up_to: float


def _stepped(values: Sequence[float], steps: Sequence[Step]) -> list[str]:
    return [next((step.route for step in steps if value <= step.up_to), steps[-1].route) for value in values]


def _checked(steps: Sequence[Step]) -> tuple[Step, ...]:
    limits = [step.up_to for step in steps]
    if not steps or limits != sorted(limits) or any(math.isnan(limit) for limit in limits):
        raise OptionError(f"the limits {limits} of the routes are not increasing", "list routes by increasing limit")
    return tuple(steps)


class LengthRule:
    """Routes by length: the number of elements of a row that are not padding (tokens of a text)."""

    def __init__(self, tensor: str, steps: Sequence[Step], padding: float = 0) -> None:
        """Raises OptionError if the limits of `steps` are not increasing."""
        self.tensor, self._steps, self._padding = tensor, _checked(steps), padding

    async def routes(self, request: Request, count: int) -> Sequence[str]:
        """See `Rule`. Raises InputError if the request has no such input."""
        array = request.inputs.get(self.tensor)
        if array is None:
            raise InputError(f"the router reads input {self.tensor!r}, which the request does not have")
        return _stepped((array.reshape(count, -1) != self._padding).sum(axis=1).tolist(), self._steps)


class ModelRule:
    """Routes by complexity, estimated by a small model."""

    def __init__(self, judge: Service, output: str, steps: Sequence[Step]) -> None:
        """`judge` reads some or all of the request's inputs, and returns one number per row in `output`.

        Raises OptionError if the limits of `steps` are not increasing.
        """
        self.judge, self.output, self._steps = judge, output, _checked(steps)

    async def routes(self, request: Request, count: int) -> Sequence[str]:
        """See `Rule`. NaN is the greatest complexity."""
        taken = {each.name for each in self.judge.inputs}
        inputs = {name: array for name, array in request.inputs.items() if name in taken}
        response = await self.judge.infer(request._replace(inputs=inputs, outputs=(self.output,)))
        values = response.outputs[self.output].reshape(count, -1).astype(np.float64)
        if count and values.shape[1] != 1:
            raise InputError(f"the router's model gives {values.shape[1]} numbers per row", "it must return one")
        return _stepped(np.where(np.isnan(values), np.inf, values).reshape(-1).tolist(), self._steps)


class LevelRule:
    """Routes by service level: the cheapest route that is accurate enough, or else the most accurate."""

    def __init__(self, accuracies: Mapping[str, float], costs_ms: Mapping[str, float]) -> None:
        """`accuracies`: relative to the best route; `costs_ms`: per row. Raises OptionError if their routes differ."""
        if not accuracies or set(accuracies) != set(costs_ms):
            raise OptionError(f"accuracies of {sorted(accuracies)}, costs of {sorted(costs_ms)}", "give both for each")
        self._accuracies, self._costs = dict(accuracies), dict(costs_ms)

    async def routes(self, request: Request, count: int) -> Sequence[str]:
        """See `Rule`."""
        level = request.level
        enough = [name for name, accuracy in self._accuracies.items() if accuracy >= level.min_accuracy]
        affordable = [name for name in enough if level.max_cost is None or self._costs[name] <= level.max_cost]
        if not affordable:
            raise InputError(
                f"no route has an accuracy of {level.min_accuracy} at a cost of at most {level.max_cost} ms a row",
                f"accuracies: {self._accuracies}, costs: {self._costs}",
            )
        return [min(affordable, key=lambda name: (self._costs[name], -self._accuracies[name]))] * count


class Router(Wrapper):
    """Several models under the name of the first route. Rows of a batch are routed one by one; the parts of a batch
    run concurrently. The note "route" names the routes that served."""

    def __init__(self, routes: Mapping[str, Service], rule: Rule, observer: Observer = NO_OBSERVER) -> None:
        """Raises OptionError if there is no route."""
        if not routes:
            raise OptionError("a router without routes", "give one or more services by name")
        super().__init__(next(iter(routes.values())))
        self.routes, self._rule, self._observer = dict(routes), rule, observer

    @property
    def identity(self) -> str:
        """A digest of all routes."""
        return "|".join(f"{name}:{identity_of(service)}" for name, service in self.routes.items())

    async def start(self) -> None:
        """Start all routes, and the rule's model. Raises OptionError if their interfaces differ."""
        for service in (*self.routes.values(), *_judge_of(self._rule)):
            await service.start()
        check_same_interface(self.routes.values(), "a router")
        _check_rule(self._rule, self.inputs)
        for service in self.routes.values():
            check_batched(service, "a router")

    async def close(self) -> None:
        """Close all routes."""
        await asyncio.gather(*(each.close() for each in (*self.routes.values(), *_judge_of(self._rule))))

    async def infer(self, request: Request) -> Response:
        """Answer with the routes that the rule chooses. Raises OptionError if the rule names an unknown route."""
        count = row_count(request.inputs)
        chosen = await self._rule.routes(request, count)
        unknown = set(chosen) - set(self.routes)
        if unknown:
            raise OptionError(f"the rule chose {sorted(unknown)}", f"the routes are {list(self.routes)}")
        groups = {name: [row for row, route in enumerate(chosen) if route == name] for name in dict.fromkeys(chosen)}
        for name, rows in groups.items():
            self._observer.observe_route(self.name, name, len(rows))
        if len(groups) <= 1:
            name = next(iter(groups), next(iter(self.routes)))
            response = await self.routes[name].infer(request)
            return response._replace(notes={**response.notes, "route": name})
        parts = await together([self.routes[name].infer(with_rows(request, rows)) for name, rows in groups.items()])
        return _merged(groups, parts, count)


def _merged(groups: Mapping[str, Sequence[int]], parts: Sequence[Response], count: int) -> Response:
    outputs = joined([(rows, part.outputs) for rows, part in zip(groups.values(), parts, strict=True)], count)
    timing = Timing(
        max(part.timing.queued for part in parts),
        sum(part.timing.computed for part in parts),
        max(part.timing.batch_rows for part in parts),
        max(part.timing.ended for part in parts),
    )
    accuracy = min(float(part.notes.get("accuracy", 1.0)) for part in parts)
    notes: dict[str, str | float] = {"route": "+".join(groups)}
    for part in parts:
        notes = {**part.notes, **notes}
    if any("accuracy" in part.notes for part in parts):
        notes["accuracy"] = accuracy
    events = tuple(event for part in parts for event in part.events)
    return Response(outputs, "+".join(part.served_by for part in parts), timing, None, notes, events)


async def together(answers: Sequence[asyncio.Future[Response] | object]) -> list[Response]:
    """Await all; if one fails, the others are cancelled and its error is raised."""
    tasks: list[asyncio.Future[Response]] = [asyncio.ensure_future(each) for each in answers]  # type: ignore[arg-type]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


def _judge_of(rule: Rule) -> list[Service]:
    return [rule.judge] if isinstance(rule, ModelRule) else []


@dataclass(frozen=True, kw_only=True)
class LengthOptions:
    """Routes by length: elements of a row of the input `tensor` that are not `padding`, and `up_to` limits by route."""

    tensor: str
    up_to: Mapping[str, float]
    padding: float = 0


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Routes by a small model: the module, its output, and `up_to` limits by route."""

    module: Path
    output: str
    up_to: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class LevelOptions:
    """Routes by service level: the accuracy of each route relative to the best one, and the cost per row."""

    accuracies: Mapping[str, float]
    costs_ms: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RouterOptions:
    """Options of a router.

    Attributes:
        routes: modules by route, in addition to "default", the served model itself.
        length, judge, level: the rule; exactly one of them.
    """

    routes: Mapping[str, Path] = field(default_factory=dict)
    length: LengthOptions | None = None
    judge: JudgeOptions | None = None
    level: LevelOptions | None = None

    def __post_init__(self) -> None:
        """Raises OptionError unless there is exactly one rule."""
        if sum(each is not None for each in (self.length, self.judge, self.level)) != 1:
            raise OptionError("a router has one rule", "name one of length, judge and level")


def build(options: RouterOptions, inner: Service, parts: Parts) -> Service:
    """Build a router between `inner` and other modules. Raises as loading modules, and as `Router`."""
    routes = {"default": inner, **{name: parts.make(path, name) for name, path in options.routes.items()}}
    rule = _rule(options, parts)
    named = {
        *(options.length.up_to if options.length is not None else ()),
        *(options.judge.up_to if options.judge is not None else ()),
        *(options.level.accuracies if options.level is not None else ()),
    }
    if named - set(routes):
        raise OptionError(f"the router's rule names {sorted(named - set(routes))}", f"its routes are {sorted(routes)}")
    return Router(routes, rule, parts.observer)


def _rule(options: RouterOptions, parts: Parts) -> Rule:
    if options.length is not None:
        return LengthRule(options.length.tensor, _steps(options.length.up_to), options.length.padding)
    if options.judge is not None:
        return ModelRule(parts.make(options.judge.module, "judge"), options.judge.output, _steps(options.judge.up_to))
    assert options.level is not None
    return LevelRule(options.level.accuracies, options.level.costs_ms)


def _steps(up_to: Mapping[str, float]) -> list[Step]:
    """Return the routes by increasing limit; rows above all limits go to the model itself."""
    steps = sorted((Step(route, limit) for route, limit in up_to.items()), key=lambda step: step.up_to)
    return steps if "default" in up_to else [*steps, Step("default", math.inf)]
