"""Sub-nets as torch computes them and as graphs: the same numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import targets
from compiler.compression.canonical import canonical
from compiler.compression.job import JobOptions, import_job
from compiler.driver.compile import compile as compile_model
from compiler.frontends.source import ImportOptions
from compiler.searching.choice import select
from compiler.searching.eager import computed
from compiler.searching.knobs import largest, smallest
from compiler.searching.precision import Precisions
from compiler.searching.settings import Space
from compiler.searching.subnet import SubNetwork
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


def test_integers_reach_the_layers_that_are_asked_for(work: TorchNet) -> None:
    config = {**largest(work.knobs), "precision middle.1": "int8"}
    text = work.model(config).mod.script()
    assert text.count("R.quantize") == 1
    assert canonical(replace(work.job.model), work.job.target).mod.script().count("R.quantize") == 0
