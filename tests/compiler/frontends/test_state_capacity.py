"""States that grow by concatenation, with a capacity: rows are written in place, and only those in use are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import tensorwright
from compiler.errors import InputError, OptionError, UnsupportedModelError
from compiler.runtime import Module
from tests.compiler.frontends.onnx.test_states import decoder

Array = np.ndarray


class Layer(torch.nn.Module):
    """Attention of four query heads over two key heads, with keys and values that grow with each step."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(32, size) for size in (32, 16, 16))

    def forward(self, x: Any, past_key: Any, past_value: Any) -> Any:
        batch, count, _ = x.shape
        before = past_key.shape[2]
        shown = torch.arange(before + count)[None] <= torch.arange(count)[:, None] + before
        mask = torch.where(shown, 0.0, torch.finfo(torch.float32).min)
        query, key, value = (
            layer(x).view(batch, count, -1, 8).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        repeated = [each.repeat_interleave(2, 1) for each in (key, value)]
        scores = query @ repeated[0].transpose(2, 3) / 8**0.5 + mask
        return (scores.softmax(-1) @ repeated[1]).transpose(1, 2).reshape(batch, count, 32), key, value


AUTO = torch.export.Dim.DYNAMIC
IMPORTS: Any = {
    "example_inputs": (torch.zeros(2, 3, 32), torch.zeros(2, 2, 5, 8), torch.zeros(2, 2, 5, 8)),
    "dynamic_shapes": {"x": {1: AUTO}, "past_key": {2: AUTO}, "past_value": {2: AUTO}},
    "state": {"past_key": "output_1", "past_value": "output_2"},
}


def compiled(layer: torch.nn.Module, **options: Any) -> Module:
    return tensorwright.compile(layer, threads=1, progress=None, **IMPORTS, **options)


@pytest.fixture(scope="module")
def layer() -> torch.nn.Module:
    torch.manual_seed(0)
    return Layer().eval()


@pytest.fixture(scope="module")
def module(layer: torch.nn.Module) -> Module:
    return compiled(layer, capacity="capacity")


class Steps:
    """The steps in PyTorch."""

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer, self.past = layer, [torch.zeros(2, 2, 0, 8)] * 2

    def check(self, session: Any, count: int) -> None:
        x = torch.from_numpy(np.random.default_rng(self.past[0].shape[2]).standard_normal((2, count, 32), "float32"))
        with torch.no_grad():
            expected, *self.past = self.layer(x, *self.past)
        got = session.run({"x": x.numpy()})
        np.testing.assert_allclose(got["output_0"], expected, rtol=1e-4, atol=1e-5)
        assert session.length == self.past[0].shape[2]
        for name, past in zip(("past_key", "past_value"), self.past, strict=True):
            np.testing.assert_allclose(session.states[name][:, :, : session.length], past, rtol=1e-4, atol=1e-5)


def test_steps_rewind_fork_save_and_load(module: Module, layer: torch.nn.Module, tmp_path: Path) -> None:
    session, steps = module.session(capacity=12), Steps(layer)
    for count in (7, 1, 1):
        steps.check(session, count)
    fork, forked = session.fork(), Steps(layer)
    forked.past = list(steps.past)
    session.rewind(4)
    steps.past = [past[:, :, :5] for past in steps.past]
    steps.check(session, 2)
    forked.check(fork, 3)
    fork.save(tmp_path / "states")
    other = module.session(capacity=16)
    other.load(tmp_path / "states")
    forked.check(other, 4)
    states = fork.states
    with pytest.raises(InputError, match="the session is full: 12 of 12 rows are in use, and this run adds 1"):
        forked.check(fork, 1)
    for name, state in fork.states.items():
        np.testing.assert_array_equal(state, states[name])


def test_attention_reads_the_rows_in_use_where_they_lie(module: Module) -> None:
    kernels = {each.kernel for each in module.manifest.kernels}
    assert "cached_attention" in kernels
    assert not any("slice" in name or "repeat" in name or "broadcast" in name for name in kernels)


def test_a_run_without_a_session_has_room_as_well(module: Module) -> None:
    buffer, x = np.zeros((2, 2, 6, 8), "float32"), np.ones((2, 3, 32), "float32")
    given = {"x": x, "past_key": buffer, "past_value": buffer}
    result = module.run({**given, "position": np.full(2, 2)})
    assert not result["output_1"][:, :, [0, 1, 5]].any()
    assert result["output_1"][:, :, 2:5].all()
    assert not buffer.any()
    with pytest.raises(InputError, match="capacity = 6 must be at least"):
        module.run({**given, "position": np.full(4, 4)})


def test_models_that_have_no_capacity(layer: torch.nn.Module) -> None:
    still = decoder()
    with pytest.raises(OptionError, match="the model has none"):
        tensorwright.compile(still, state={"state": "stateN"}, capacity=8)
    with pytest.raises(OptionError, match="not a new name of a dimension"):
        tensorwright.compile(still, capacity="batch")
    with pytest.raises(OptionError, match="not a number of rows"):
        tensorwright.compile(still, capacity=0)
    renamed = onnx.ModelProto.FromString(still.SerializeToString())
    renamed.graph.node[0].input[:] = ["x", "past_key_values.0.key"]
    with pytest.raises(UnsupportedModelError, match=r"is not Concat\(past_key_values.0.key, rows\)"):
        tensorwright.compile(renamed, capacity=8)


def test_a_compressed_model_gets_its_capacity_in_the_end(layer: torch.nn.Module) -> None:
    """Calibration samples are inputs of the original model."""
    random = np.random.default_rng(1)
    samples = [
        {"x": random.standard_normal((2, 3, 32), "float32")}
        | {name: random.standard_normal((2, 2, 5, 8), "float32") for name in ("past_key", "past_value")}
    ]
    options: Any = {**IMPORTS, "capacity": 12, "threads": 1, "progress": None}
    smaller = tensorwright.quantize(layer, samples, scheme="weight-int8", **options)
    session = tensorwright.compile(smaller, threads=1, progress=None).session()
    past = [torch.zeros(2, 2, 0, 8)] * 2
    for count in (4, 1):
        x = random.standard_normal((2, count, 32), "float32")
        with torch.no_grad():
            expected, *past = layer(torch.from_numpy(x), *past)
        np.testing.assert_allclose(session.run({"x": x})["output_0"], expected, atol=0.02)
    assert (session.length, session.capacity) == (5, 12)
    with pytest.raises(OptionError, match="the model has none"):
        tensorwright.prune(decoder(), 0.5, state={}, capacity=8)
    with pytest.raises(TypeError, match="'capacit'; did you mean 'capacity'"):
        tensorwright.quantize(layer, samples, capacit=8)  # type: ignore[call-arg]
