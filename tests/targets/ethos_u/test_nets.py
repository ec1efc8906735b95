"""The MLPerf Tiny nets: whole, compiled by Vela, simulated, equal to the reference model bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.ethos_u import measure, quantized
from benchmarks.tiny_nets import NETS
from compiler.frontends.imported_model import ImportedModel
from tests.targets.ethos_u.checking import check, planned, target_named

_MODELS: dict[str, ImportedModel] = {}


def model_of(name: str) -> ImportedModel:
    if name not in _MODELS:
        _MODELS[name] = quantized(NETS[name](), target_named())
    return _MODELS[name]


@pytest.mark.parametrize("name", list(NETS))
def test_net(name: str) -> None:
    found, plan = planned(model_of(name))
    assert not found.refused
    (segment,) = plan.parts.values()
    (result,) = check(segment)
    assert result.std() > 1 or len(np.unique(result)) > 1


@pytest.mark.parametrize("target", ["cortex-m55+ethos-u65-256", "cortex-m85+ethos-u85-256"])
def test_other_accelerators(target: str) -> None:
    """The U85 has no simulator: Vela compiles for it, and the graph runs in the reference model."""
    _, plan = planned(model_of("resnet8"), target)
    check(next(iter(plan.parts.values())), target)


def test_the_graph_passes_save_cycles() -> None:
    """Batch normalizations that are folded into convolutions cost nothing; by themselves they cost more than these."""
    with_passes, without = (
        measure("ds_cnn", target_named(), naive=naive)["estimate"]["cycles"] for naive in (False, True)
    )
    assert with_passes < 0.2 * without
