"""Sub-nets give equal results in torch and as graphs."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest
import torch
from torch import nn

import targets
from benchmarks.digits import DigitsTransformer
from compiler.compression.job import JobOptions, import_job
from compiler.compression.model import canonical
from compiler.driver.compile import compile as compile_model
from compiler.frontends.source import ImportOptions
from compiler.searching.choice import choice, select
from compiler.searching.eager import computed
from compiler.searching.knobs import largest, smallest
from compiler.searching.precision import Precisions
from compiler.searching.settings import Space
from compiler.searching.supernet import SubNetwork
from compiler.searching.torch_net import TorchNet
from tests.compiler.searching.nets import tiny

SPACE = Space(channels=(0.5,), kernels=(1, 3), resolution=(0.5,), precision=("int8", "float32"))


@pytest.fixture(scope="module")
def work() -> TorchNet:
    net = tiny(choices=True)
    imports = ImportOptions(example_inputs=[torch.zeros(1, 1, 8, 8)])
    job = import_job(net, JobOptions(target="host"), imports)
    return TorchNet(net, job, imports, SPACE, Precisions(targets.get("host")), ())


def test_every_kind_of_knob_is_found(work: TorchNet) -> None:
    kinds = {knob.name: knob.kind for knob in work.knobs}
    assert kinds["choice middle"] == "choice"
    assert kinds["resolution"] == "resolution"
    assert kinds["expansion block.body.0"] == "expansion"
    assert kinds["kernel middle.1"] == "kernel"
    assert kinds["layer block.add"] == "layer"
    assert kinds["precision head"] == "precision"
    assert any(kind == "channels" for kind in kinds.values())


@pytest.mark.parametrize("form", [0, 1])
def test_a_sub_net_and_its_graph_give_the_same(work: TorchNet, form: int) -> None:
    floats = {knob.name: "float32" for knob in work.knobs if knob.kind == "precision"}
    layer = {"layer block.add": form == 1}  # the first form without it
    config = {**smallest(work.knobs), **floats, **layer, "choice middle": form}
    image = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    select(work.net, config)
    with torch.no_grad():
        wanted = computed(work.net, work.sub_net(config), [image]).numpy()
        whole = work.net(image).numpy()
    assert np.abs(wanted - whole).max() > 1e-2
    compressed = SubNetwork.of(work, config).compressed()
    for model in (work.model(config), compressed):
        got = compile_model(model, progress=None).run({"image": image.numpy()})
        np.testing.assert_allclose(next(iter(got.values())), wanted, rtol=1e-4, atol=1e-5)


def test_forms_share_one_order_and_training_does_not_change_it(work: TorchNet) -> None:
    first, second = (work.skeleton({"choice middle": form}).graph for form in (0, 1))
    common = [
        name for name in first.cells if name in second.cells and len(first.order[name]) == len(second.order[name])
    ]
    assert common
    for name in common:
        places = [np.searchsorted(np.sort(each.cells[name].units), each.order[name]) for each in (first, second)]
        assert places[0].tolist() == places[1].tolist()
    weight = work.net.get_parameter("stem.0.weight")
    before = weight.detach().clone()
    config = {knob.name: knob.options[0] for knob in work.knobs if knob.kind == "channels"}
    masks = work.sub_net(config).masks
    with torch.no_grad():
        weight.copy_(weight.flip(0) * 3)
    work._skeletons.clear()
    work._subs.clear()
    try:
        assert torch.equal(work.sub_net(config).masks["stem.0.weight"], masks["stem.0.weight"])
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_training_draws_every_combination_of_forms() -> None:
    net = nn.Sequential(*[choice(nn.Identity(), nn.ReLU(), nn.Tanh()) for _ in range(3)]).eval()
    imports = ImportOptions(example_inputs=[torch.zeros(1, 4)])
    job = import_job(net, JobOptions(target="host"), imports)
    work = TorchNet(net, job, imports, Space(layers=False), Precisions(targets.get("host")), ())
    drawn = [tuple(shape.values()) for shape in islice(work.shapes(Random(0)), 300)]
    assert len(set(drawn)) == 27
    for knob in range(3):
        assert {drawn[place][knob] for place in range(3)} == {0, 1, 2}
    assert not work.sub_net({"choice 0": 1}).masks


def test_heads_and_layers_of_attention_go() -> None:
    torch.manual_seed(0)
    net = DigitsTransformer(width=16, depth=1).eval()
    imports = ImportOptions(example_inputs=[torch.zeros(1, 1, 16, 16)])
    job = import_job(net, JobOptions(target="host"), imports)
    space = Space(precision=("int4", "bf16", "int8", "float32"))
    work = TorchNet(net, job, imports, space, Precisions(targets.get("host")), ())
    knobs = {knob.name: knob for knob in work.knobs}
    assert knobs["heads blocks.0.qkv"].options == (2, 4)
    assert knobs["expansion blocks.0.network.0"].kind == "expansion"
    assert {"layer blocks.0.add_1", "layer blocks.0.add_2"} <= set(knobs)
    assert knobs["precision blocks.0.network.0"].options == space.precision
    image = torch.randn(1, 1, 16, 16)
    config = {"heads blocks.0.qkv": 2, "expansion blocks.0.network.0": knobs["expansion blocks.0.network.0"].options[0]}
    with torch.no_grad():
        wanted = computed(work.net, work.sub_net(config), [image]).numpy()
        assert np.abs(wanted - work.net(image).numpy()).max() > 1e-3
    got = compile_model(SubNetwork.of(work, config).compressed(), progress=None).run([image.numpy()])
    np.testing.assert_allclose(next(iter(got.values())), wanted, rtol=1e-4, atol=1e-5)


class Sequences(nn.Module):
    """A convolution that a recurrent layer reads, a layer with a scale, and attention that gives a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 1)
        self.inner, self.scale = nn.Linear(8, 8), nn.Parameter(torch.full((8,), 0.5))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.gru, self.head = nn.Linear(8, 8), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        x = self.conv(audio).transpose(1, 2)
        x = x + self.inner(x) * self.scale
        x = x + self.attention(x, x, x, need_weights=False)[0]
        logits: torch.Tensor = self.head(self.gru(torch.relu(self.first(x)))[0][:, -1])
        return logits


def test_recurrent_layers_scaled_layers_and_attention() -> None:
    torch.manual_seed(0)
    net = Sequences().eval()
    imports = ImportOptions(example_inputs=[torch.zeros(1, 4, 3)])
    job = import_job(net, JobOptions(target="host"), imports)
    work = TorchNet(net, job, imports, Space(channels=(0.5,)), Precisions(targets.get("host")), ())
    assert {"layer add", "layer add_1", "channels first"} <= {knob.name for knob in work.knobs}
    audio = torch.randn(1, 4, 3)
    config = {**smallest(work.knobs), "layer add": True}
    with torch.no_grad():
        wanted = computed(work.net, work.sub_net(config), [audio]).numpy()
    got = compile_model(work.model(config), progress=None).run([audio.numpy()])
    np.testing.assert_allclose(next(iter(got.values())), wanted, rtol=1e-4, atol=1e-6)


def test_integers_reach_the_layers_that_are_asked_for(work: TorchNet) -> None:
    config = {**largest(work.knobs), "precision middle.1": "int8"}
    text = work.model(config).mod.script()
    assert text.count("R.quantize") == 1
    assert canonical(replace(work.job.model), work.job.target).mod.script().count("R.quantize") == 0
