"""Predicts the multi-core time of a network from the single-core times of its parts.

The time of a call is the longest part of each of its parallel regions, the time outside of them, and the cost of
starting and joining the regions; but at least the time to read its bytes from memory and from the shared cache (the
roofline model, Williams et al. 2009). All cores are assumed to be as fast as this machine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compiler.profiling.attribution import RUNTIME
from compiler.support.roofline import ASSUMED_HERTZ, Roofline
from schedules.machine import Machine
from schedules.task_split import start_cycles

SERIAL_SECONDS = 100e-6
"""Work of a kernel on one core below which it need not be cut."""


@dataclass(frozen=True)
class Call:
    """A kernel call on a number of cores; times in seconds.

    Attributes:
        one: time on one core, of the module compiled for one.
        longest: time of the longest part of each region plus the time outside parallel regions.
        moving: lower bound from memory traffic.
        starting: time to launch and join its regions.
        tasks: tasks of its parallel loops as the compiler states them, "" if it does not.
        stated: the compiler's reason why one core computes it; "" if it gives none.
        parts: the most parts with work that a region has; 1 for a kernel that is not cut.
        balance: work of the average core over that of the busiest.
    """

    kernel: str
    rule: str
    nodes: tuple[str, ...]
    one: float
    longest: float
    moving: float
    starting: float
    tasks: str
    stated: str
    parts: int
    balance: float

    @property
    def seconds(self) -> float:
        return max(self.longest, self.moving) + self.starting

    @property
    def is_serial(self) -> bool:
        return self.parts == 1

    @property
    def reason(self) -> str:
        """The reason why one core computes it."""
        if self.parts > 1:
            return ""
        if self.stated:
            return self.stated
        if self.tasks or self.starting:
            return f"its parallel loop has {self.tasks or 'one'} task"
        return "a function of the runtime" if self.rule == RUNTIME else "threads do not pay at these sizes"


@dataclass(frozen=True)
class Prediction:
    """A network on a number of cores."""

    cores: int
    calls: tuple[Call, ...]

    @property
    def one(self) -> float:
        return sum(call.one for call in self.calls)

    @property
    def seconds(self) -> float:
        return sum(call.seconds for call in self.calls)

    @property
    def speedup(self) -> float:
        return self.one / self.seconds

    @property
    def bound(self) -> float:
        """The speedup with perfectly balanced parts and no cost but launching the regions."""
        return self.one / (self.one / self.cores + sum(call.starting for call in self.calls))

    def serial(self) -> list[Call]:
        """Calls that run on one core, longest first."""
        return sorted((call for call in self.calls if call.is_serial), key=lambda call: -call.longest)

    @property
    def serial_share(self) -> float:
        """The fraction of the time on this number of cores during which only one computes."""
        return sum(call.seconds for call in self.serial()) / self.seconds

    @property
    def balance(self) -> float:
        """Load balance over all calls; 1: all cores are busy to the end."""
        return sum(call.one for call in self.calls) / sum(self.cores * call.longest for call in self.calls)

    @property
    def starting_share(self) -> float:
        return sum(call.starting for call in self.calls) / self.seconds

    @property
    def moving_share(self) -> float:
        """The fraction of the time in calls bound by memory."""
        return sum(call.seconds for call in self.calls if call.moving > call.longest) / self.seconds


def predict(calls: Sequence[Mapping[str, Any]], one: Sequence[Mapping[str, Any]], machine: Machine) -> Prediction:
    """Predict a module's time on a machine from its calls, given the calls of the same network on one core (`one`).

    If both make the same calls, each is compared with its counterpart; otherwise the times on one core are distributed
    by the work in the parts.
    """
    roofline = Roofline.of(machine, measured=False)
    weights = sum(call["weight_bytes"] for call in calls)
    singles = [_work(call) for call in one]
    works = [_work(call) for call in calls]
    if [call["kind"] for call in calls] != [call["kind"] for call in one]:
        scale = sum(singles) / sum(works)
        singles = [work * scale for work in works]
    return Prediction(
        machine.cores,
        tuple(
            Call(
                kernel=call["kernel"],
                rule=call["rule"] or call["kind"],
                nodes=tuple(call["nodes"]),
                one=single,
                longest=call["serial"] + sum(region["longest"] for region in call["regions"]),
                # A single core cannot have a higher bandwidth than all together.
                moving=0.0 if call["kind"] == RUNTIME else min(single, _moving(call, weights, roofline)),
                starting=_starting(call, machine.cores),
                tasks=", ".join(map(str, call["tasks"] or ())),
                stated=call["reason"] or "",
                parts=max((region["busy"] for region in call["regions"]), default=1),
                balance=_balance(call, machine.cores),
            )
            for call, single in zip(calls, singles, strict=True)
        ),
    )


def _work(call: Mapping[str, Any]) -> float:
    return float(call["serial"]) + sum(float(region["total"]) for region in call["regions"])


def _starting(call: Mapping[str, Any], cores: int) -> float:
    """Seconds to launch and join its regions, each in as many threads as it has tasks."""
    known = call["tasks"] or ()
    tasks = known if len(known) == len(call["regions"]) else [cores] * len(call["regions"])
    return sum(start_cycles(min(count, cores)) for count in tasks) / ASSUMED_HERTZ


def _balance(call: Mapping[str, Any], cores: int) -> float:
    longest = call["serial"] + sum(region["longest"] for region in call["regions"])
    return _work(call) / (cores * longest) if longest else 1.0


def _moving(call: Mapping[str, Any], weights: int, roofline: Roofline) -> float:
    """Seconds to load a call's tensors: weights from memory unless the network's weights stay in the shared cache,
    everything else from the shared cache if it fits."""
    far = call["weight_bytes"] * (weights > roofline.cache_bytes)
    far += call["other_bytes"] * (call["other_bytes"] > roofline.cache_bytes)
    near = call["weight_bytes"] + call["other_bytes"] - far
    return max(far / roofline.memory_bandwidth, near / roofline.cache_bandwidth)
