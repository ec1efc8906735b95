"""Drift from the reference: compared requests, counted differences, and the switch back."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from compiler.errors import OptionError, OverloadedError
from compiler.serving.metrics import NO_OBSERVER, Observer
from compiler.serving.parts import Parts
from compiler.serving.policies.drift import Drift, DriftOptions, build, drift_of
from tests.compiler.serving.services import FunctionService, request


class Seen(Observer):
    def __init__(self) -> None:
        self.values: list[tuple[float, bool]] = []

    def observe_drift(self, model: str, value: float, *, exceeded: bool) -> None:
        self.values.append((round(value, 5), exceeded))


async def settled(drift: Drift) -> None:
    await asyncio.gather(*drift._comparing)


def test_drift_beyond_the_limit_is_told_and_switches_back() -> None:
    async def scenario() -> None:
        inner, reference, seen = FunctionService(lambda x: x * 2.2, identity="int8"), FunctionService(), Seen()
        reference.identity = "float32"
        options = DriftOptions(limit=0.05, share=1, measure="absolute", least=2, window=3, switch_back=True)
        drift = Drift(inner, reference, options, seen)
        await drift.start()
        first = await drift.infer(request(1, deadline=5.0, outputs=("y",)))
        first.outputs["y"][:] = 0
        await settled(drift)
        assert seen.values == [(0.1, False)]
        assert reference.asked[0].deadline is None  # nobody waits for it
        assert drift.identity == "int8"
        await drift.infer(request(2))
        await settled(drift)
        assert seen.values[-1] == (0.1, True)
        switched = await drift.infer(request(3))
        assert switched.notes["switched_back"] == 1.0
        assert switched.outputs["y"][0, 0] == 6
        assert (len(inner.asked), drift.identity) == (2, "float32")
        drift.reset()
        assert "switched_back" not in (await drift.infer(request(3))).notes
        await drift.close()
        assert (reference.started, reference.closed) == (1, 1)

    asyncio.run(scenario())


def test_the_same_share_of_requests_is_compared_each_time() -> None:
    async def compared() -> list[float]:
        reference = FunctionService()
        drift = Drift(FunctionService(), reference, DriftOptions(limit=1, share=0.25))
        for value in range(200):
            await drift.infer(request(value))
            await settled(drift)
        return [float(each.inputs["x"][0, 0]) for each in reference.asked]

    first = asyncio.run(compared())
    assert first == asyncio.run(compared())
    assert 25 < len(first) < 75


def test_a_reference_that_fails_or_is_slow_harms_no_answer() -> None:
    async def scenario() -> None:
        reference = FunctionService()
        reference.failures = [OverloadedError("full")]
        drift = Drift(FunctionService(), reference, DriftOptions(limit=1, share=1))
        await drift.infer(request(1))
        await settled(drift)
        assert drift.value == 0
        reference.gate = asyncio.Event()
        for value in range(10):
            await drift.infer(request(value))
        await asyncio.sleep(0)
        assert len(reference.asked) <= 1 + 4  # the others are not compared
        reference.gate.set()
        await settled(drift)

    asyncio.run(scenario())


def test_measures() -> None:
    wanted = {"y": np.array([[1.0, 0.0], [0.0, 2.0]])}
    got = {"y": np.array([[1.0, 1.0], [0.0, 2.0]])}
    assert drift_of(got, wanted, "cosine") == pytest.approx(1 - 1 / np.sqrt(2))
    assert drift_of(got, wanted, "absolute") == pytest.approx(0.5)
    assert drift_of({"y": wanted["y"][:, ::-1]}, wanted, "labels") == 1.0
    for measure in ("cosine", "absolute", "labels"):
        assert drift_of(wanted, wanted, measure) == 0
    broken = {"y": np.array([[1.0, np.nan], [0.0, 2.0]])}
    assert drift_of(broken, wanted, "cosine") == drift_of(broken, wanted, "absolute") == 1.0
    assert drift_of(broken, broken, "absolute") == 0
    zero = {"y": np.zeros((1, 2))}
    assert drift_of(zero, zero, "cosine") == 0


@pytest.mark.parametrize("change", [{"share": 0}, {"limit": -1}, {"measure": "feeling"}, {"least": 300}])
def test_options_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        DriftOptions(**{"limit": 0.1, **change})


def test_a_model_without_a_reference_is_refused() -> None:
    def make(path: object, variant: str) -> Any:
        raise AssertionError

    with pytest.raises(OptionError, match="no reference"):
        build(DriftOptions(limit=0.1), FunctionService(), Parts(NO_OBSERVER, make))
