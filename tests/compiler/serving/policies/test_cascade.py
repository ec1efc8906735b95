"""Cascades and routers: rows are decided one by one, thresholds are calibrated, early exits skip work."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compiler.artifact import TensorDescription
from compiler.cli import main
from compiler.errors import InputError, NothingGainedError, OptionError, OverloadedError
from compiler.runtime import Module
from compiler.serving.policies.cascade import Cascade
from compiler.serving.policies.cascade_calibration import CascadeCalibration, calibrate_cascade, read_cascade, score_of
from compiler.serving.policies.router import LengthRule, LevelRule, ModelRule, Router, Step
from compiler.serving.request import Request, Response
from tests.compiler.runtime.building import build_artifact
from tests.compiler.serving.services import Array, FunctionService, request

import schedules.ir.load_tvm  # noqa: F401  isort: skip  (loads TVM without torch)
from tvm import relax  # isort: skip


def calibration(threshold: float = 0.9, **changes: Any) -> CascadeCalibration:
    numbers: dict[str, Any] = {
        name: 1.0
        for name in CascadeCalibration.__annotations__
        if name not in ("score", "output", "rows", "small_identity", "large_identity")
    }
    numbers |= {"accuracy": 0.99, "small_accuracy": 0.9, "threshold": threshold, **changes}
    return CascadeCalibration(score="value", output="y", rows=50, **numbers)


def both() -> tuple[FunctionService, FunctionService]:
    """For a row (v, v + 0.5) the small model gives v twice, which is its score, and the large one 100 v."""
    small = FunctionService(lambda x: np.repeat(x[:, :1], 2, axis=1), name="small")
    return small, FunctionService(lambda x: x * 100, name="large")


def test_rows_of_a_batch_are_decided_one_by_one() -> None:
    async def scenario() -> None:
        small, large = both()
        cascade = Cascade(small, large, calibration())
        await cascade.start()
        mixed = await cascade.infer(request(1.0, 0.5, 2.0, 0.1))
        assert list(mixed.outputs["y"][:, 0]) == pytest.approx([1.0, 50.0, 2.0, 10.0])
        assert list(large.asked[-1].inputs["x"][:, 0]) == pytest.approx([0.5, 0.1])
        assert mixed.served_by == "small/1/default+large/1/default"
        assert mixed.notes["large_rows"] == 2.0
        assert mixed.notes["cascade_score"] == pytest.approx(0.1)
        sure = await cascade.infer(request(1.0, 3.0))
        assert sure.served_by == "small/1/default"
        assert len(large.asked) == 1
        unsure = await cascade.infer(request(0.1, np.nan))
        assert unsure.served_by == "large/1/default"
        strict = await cascade.infer(request(5.0, min_accuracy=0.995))
        assert strict.served_by == "large/1/default"
        assert (await cascade.infer(request())).outputs["y"].shape == (0, 2)

    asyncio.run(scenario())


def test_a_large_model_without_room_leaves_the_small_ones_answer() -> None:
    async def scenario() -> None:
        small, large = both()
        cascade = Cascade(small, large, calibration())
        large.failures = [OverloadedError("full"), OverloadedError("full")]
        answer = await cascade.infer(request(0.5, 2.0))
        assert (answer.notes["degraded"], answer.notes["accuracy"]) == (1.0, 0.9)
        with pytest.raises(OverloadedError):
            await cascade.infer(request(0.5, min_accuracy=0.95))

    asyncio.run(scenario())


class Exit(FunctionService):
    """The first half of a net: "y", and the hidden values that the second half goes on with."""

    @property
    def outputs(self) -> tuple[TensorDescription, ...]:
        return (*super().outputs, TensorDescription(name="hidden", shape=("batch", 2), dtype="float32"))

    async def infer(self, request: Request) -> Response:
        response = await super().infer(request)
        outputs: Mapping[str, Array] = {**response.outputs, "hidden": request.inputs["x"] + 7}
        assert request.outputs is not None
        return Response({name: outputs[name] for name in request.outputs}, response.served_by)


class SecondHalf(FunctionService):
    @property
    def inputs(self) -> tuple[TensorDescription, ...]:
        return (TensorDescription(name="h", shape=("batch", 2), dtype="float32"),)

    async def infer(self, request: Request) -> Response:
        self.asked.append(request)
        return Response({"y": request.inputs["h"]}, "model/1/second")


def test_early_exits_go_on_from_what_the_first_half_computed() -> None:
    async def scenario() -> None:
        small, large = Exit(both()[0].function), SecondHalf()
        cascade = Cascade(small, large, calibration(), feeds={"h": "hidden"})
        await cascade.start()
        assert [each.name for each in cascade.inputs] == ["x"]
        answer = await cascade.infer(request(1.0, 0.5))
        assert list(answer.outputs["y"][:, 0]) == [1.0, 7.5]
        assert list(answer.outputs) == ["y"]
        assert large.asked[0].inputs["h"].shape == (1, 2)
        wrong = Cascade(both()[0], SecondHalf(), calibration(), feeds={"h": "hidden"})
        with pytest.raises(OptionError, match="hidden"):
            await wrong.start()

    asyncio.run(scenario())
    nothing: Any = None
    with pytest.raises(OptionError, match="without a calibration"):
        Cascade(*both(), nothing)


def test_scores() -> None:
    logits = {"y": np.array([[1.0, 3.0, 0.0], [2.0, 2.0, np.nan]], np.float32)}
    assert score_of("margin", "y")(logits).tolist() == [2.0, -np.inf]
    softmax = np.exp(3) / np.exp([1, 3, 0]).sum()
    assert score_of("softmax", "y")(logits)[0] == pytest.approx(softmax)
    assert score_of("probability", "y")(logits)[0] == 3.0
    with pytest.raises(OptionError, match="no score"):
        score_of("guess", "y")


def linear(scale: float, path: Path) -> Module:
    """y = scale * x for rows of two."""
    artifact = build_artifact(
        [("x", ("n", 2), "float32")],
        [("y", ("n", 2), "float32")],
        lambda x: [relax.op.multiply(x, relax.const(np.array([scale, 1.0], np.float32)))],
    )
    Module(artifact).export(path)
    return Module(artifact, threads=1)


def test_the_threshold_holds_the_limit_with_the_fewest_rows_of_the_large_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The small model sees the first value 20 % too small: it is wrong where the two are near, which its margin shows.
    x = np.random.default_rng(0).uniform(0, 1, (400, 2)).astype(np.float32)
    labels = x.argmax(axis=1)
    small, large = linear(0.8, tmp_path / "small.twm"), linear(1.0, tmp_path / "large.twm")

    def evaluate(run: Any) -> float:
        return float((run({"x": x})["y"].argmax(axis=1) == labels).mean())

    y = x * np.array([0.8, 1.0], np.float32)
    margins, wrong = np.abs(y[:, 0] - y[:, 1]), y.argmax(axis=1) != labels
    found = calibrate_cascade(small, large, evaluate, costs_ms=(1.0, 10.0))
    assert found.score_cascade == found.score_large == 1.0
    assert found.score_small == pytest.approx(1 - wrong.mean())
    needed = (margins <= margins[wrong].max()).mean()  # every wrong row has to go to the large model
    assert needed <= found.large_share < needed + 2 / 128
    assert found.cost_ms == pytest.approx(1 + 10 * found.large_share)
    looser = calibrate_cascade(small, large, evaluate, costs_ms=(1.0, 10.0), max_drop=0.05)
    assert looser.large_share < found.large_share
    assert looser.accuracy >= 0.95
    with pytest.raises(NothingGainedError, match="more than the large model"):
        calibrate_cascade(small, large, evaluate, costs_ms=(9.0, 10.0))

    np.savez(tmp_path / "data.npz", x=x, label=labels)
    modules = [str(tmp_path / "small.twm"), str(tmp_path / "large.twm")]
    output = tmp_path / "cascade.json"
    data = ["--samples", str(tmp_path / "data.npz"), "--labels", "label"]
    # Two modules of one size: a cascade of them cannot pay, and the command says so with its numbers.
    assert main(["calibrate", "cascade", *modules, *data, "-o", str(output)]) != 0
    assert "costs more than the large model alone" in " ".join(capsys.readouterr().err.split())
    found.save(output)
    assert read_cascade(output) == found
    with pytest.raises(OptionError, match="not a calibration"):
        read_cascade(tmp_path / "data.npz")


def test_an_early_exit_is_calibrated_with_what_its_first_half_computes(tmp_path: Path) -> None:
    """y = x @ [[0.8, 0], [0, 1]] first; the second half makes it right where the margin is small."""
    x = np.random.default_rng(0).uniform(0, 1, (200, 2)).astype(np.float32)
    first, second = linear(0.8, tmp_path / "first.twm"), linear(1.25, tmp_path / "second.twm")
    labels = x.argmax(axis=1)

    def evaluate(run: Any) -> float:
        return float((run({"x": x})["y"].argmax(axis=1) == labels).mean())

    found = calibrate_cascade(first, second, evaluate, costs_ms=(1.0, 10.0), feeds={"x": "y"})
    assert found.score_cascade == found.score_large == 1.0 > found.score_small
    assert 0 < found.large_share < 0.6
    assert found.cost_large_ms == 11.0
    assert found.cost_ms == pytest.approx(1 + 10 * found.large_share)
    with pytest.raises(OptionError, match="feeds= names 'z'"):
        calibrate_cascade(first, second, evaluate, feeds={"x": "z"})

    np.savez(tmp_path / "data.npz", x=x, label=labels)
    modules = [str(tmp_path / "first.twm"), str(tmp_path / "second.twm")]
    data = ["--samples", str(tmp_path / "data.npz"), "--labels", "label", "--feeds"]
    output = tmp_path / "cascade.json"
    assert main(["calibrate", "cascade", *modules, *data, "x=y", "-o", str(output)]) == 0
    assert read_cascade(output).score_large == 1.0
    assert main(["calibrate", "cascade", *modules, *data, "x", "-o", str(output)]) != 0


def routed(rule: Any, *asked: Request) -> tuple[list[Response], dict[str, FunctionService]]:
    services = {name: FunctionService(partial(np.multiply, scale), name=name) for name, scale in _SCALES.items()}

    async def scenario() -> list[Response]:
        router = Router(services, rule)
        await router.start()
        answers = [await router.infer(each) for each in asked]
        await router.close()
        return answers

    return asyncio.run(scenario()), services


_SCALES = {"small": 1.0, "large": 10.0}
STEPS = [Step("small", 1.0), Step("large", np.inf)]


def test_routers_send_rows_by_their_complexity() -> None:
    length = LengthRule("x", STEPS)
    mixed = Request({"x": np.array([[1, 1], [0, 3], [2, 2]], np.float32)})
    (answer, alone), services = routed(length, mixed, Request({"x": np.array([[0, 1]], np.float32)}))
    assert answer.outputs["y"].tolist() == [[10, 10], [0, 3], [20, 20]]
    assert (answer.notes["route"], alone.notes["route"]) == ("large+small", "small")
    assert (services["small"].rows, services["large"].rows) == (2, 2)

    judge = FunctionService(lambda x: x[:, :1])
    (answer,), _ = routed(ModelRule(judge, "y", STEPS), request(0.5, 1.5, np.nan))
    assert answer.outputs["y"][:2, 0].tolist() == [0.5, 15.0]
    assert (judge.started, judge.closed) == (1, 1)
    with pytest.raises(OptionError, match="are not increasing"):
        LengthRule("x", STEPS[::-1])


def test_routers_by_level_and_what_fails() -> None:
    rule = LevelRule({"small": 0.9, "large": 1.0}, {"small": 1.0, "large": 5.0})
    answers, _ = routed(rule, request(1), request(1, min_accuracy=0.95))
    assert [each.notes["route"] for each in answers] == ["small", "large"]
    with pytest.raises(InputError, match="no route"):
        routed(rule, request(1, min_accuracy=0.95, max_cost=2.0))
    with pytest.raises(OptionError, match="the rule chose"):
        routed(LengthRule("x", [Step("other", np.inf)]), request(1))

    async def scenario() -> None:
        services = {name: FunctionService(name=name) for name in _SCALES}
        services["small"].failures = [InputError("bad")]
        services["large"].gate = asyncio.Event()  # would never answer
        router = Router(services, LengthRule("x", STEPS))
        with pytest.raises(InputError):
            await router.infer(Request({"x": np.array([[0, 1], [1, 1]], np.float32)}))

    asyncio.run(scenario())
