"""Cost models rank configs: the analytic one by counts, the trees by measurements."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import OptionError
from compiler.tuning.cost_models import Sample, Subject, cost_models
from compiler.tuning.cost_models.roofline import estimate
from compiler.tuning.cost_models.xgboost import NAMES, Featurizer, XgboostModel, relative_speeds
from compiler.tuning.search.evolutionary import random_config
from schedules.config import Config
from schedules.conv.direct import ConvDirect
from schedules.conv.workload import ConvWorkload
from schedules.machine import Machine
from schedules.rule import ScheduleRule
from schedules.selection.registry import rules

MACHINE = Machine(vector_bits=512, vector_registers=32, l2_bytes=1 << 20, cores=2, fma_ports=1)
RULE = ConvDirect()


def work(size: int, channels: int = 64) -> ConvWorkload:
    pair = (size, size)
    return ConvWorkload(
        1, channels, 16, pair, (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), "float32", filters=64, groups=1, in_block=16
    )


def subject(size: int, channels: int = 64) -> Subject:
    workload = work(size, channels)
    return Subject(f"conv {size} {channels}", RULE.name, workload, MACHINE, RULE.default(workload, MACHINE))


def configs(size: int, count: int, seed: int = 0) -> list[Config]:
    generator = random.Random(seed)
    space = RULE.space(work(size), MACHINE)
    found = [random_config(space, generator) for _ in range(count)]
    return [config for config in found if config is not None]


def seconds(config: Config) -> float:
    """A synthetic machine on which small tiles and uneven shares are slow."""
    tile = config.integer("pixels") * config.integer("blocks")
    return (1 + 8 / tile + 0.3 * (config.integer("rows") % 5)) * 1e-4


def accuracy(scores: np.ndarray, times: list[float]) -> float:
    """Share of pairs that are ranked correctly."""
    pairs = [(i, j) for i in range(len(times)) for j in range(i) if times[i] != times[j]]
    right = sum((scores[i] > scores[j]) == (times[i] < times[j]) for i, j in pairs)
    return right / len(pairs)


def test_names_are_known_and_others_are_refused() -> None:
    assert {"random", "roofline", "xgboost"} <= set(cost_models.names())
    with pytest.raises(OptionError, match="no cost model 'tarot'"):
        cost_models.make("tarot")


def test_the_roofline_prefers_the_default_to_a_bad_config() -> None:
    where = subject(28)
    bad = where.default.replace(pixels=1, blocks=1, rows=28, chunks=1)
    scores = cost_models.make("roofline").predict(where, [bad, where.default])
    assert scores[1] > scores[0]


def test_every_rule_with_a_workload_of_its_own_kind_has_an_estimate() -> None:
    estimates = {rule.name for rule in rules() if type(rule).estimate is not ScheduleRule.estimate}
    assert {"conv-direct", "conv-winograd", "conv-depthwise", "pool", "matmul", "attention"} <= estimates


def test_an_estimate_counts_arithmetic() -> None:
    where = subject(28)
    found = estimate(where.rule, where.workload, where.default, MACHINE)
    assert found is not None
    least = where.workload.flops / 2 / 16 / MACHINE.fma_ports
    assert least <= found.cycles <= 1.5 * least
    assert estimate("no such rule", where.workload, where.default, MACHINE) is None


def test_features_have_a_fixed_order_and_length() -> None:
    where = subject(28)
    rows = Featurizer(where).matrix(configs(28, 5))
    assert rows.shape == (5, len(NAMES))
    assert len(set(NAMES)) == len(NAMES)
    own = Featurizer(where).row(where.default)
    assert all(own[i] == 0 for i, name in enumerate(NAMES) if name.startswith("moved.") and not np.isnan(own[i]))


def test_relative_speeds_are_within_a_task() -> None:
    a, b = subject(28), subject(14)
    one, other = configs(14, 2)
    samples = [Sample(a, one, 1.0), Sample(a, other, 2.0), Sample(b, one, 8.0), Sample(b, other, None)]
    assert relative_speeds(samples).tolist() == [0.0, -1.0, 0.0, -3.0]


@pytest.fixture(scope="module")
def trained() -> XgboostModel:
    model = XgboostModel(seed=1)
    samples = [Sample(subject(size), config, seconds(config)) for size in (14, 28) for config in configs(size, 150)]
    model.update(samples)
    return model


def test_trees_learn_and_transfer_to_another_shape(trained: XgboostModel) -> None:
    held_out = configs(56, 80, seed=5)
    times = [seconds(config) for config in held_out]
    assert accuracy(trained.predict(subject(56), held_out), times) > 0.8


def test_a_stored_model_predicts_the_same_and_learns_on(trained: XgboostModel, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.json")
    again = XgboostModel(pretrained=tmp_path / "model.json")
    asked = configs(28, 20, seed=9)
    assert again.predict(subject(28), asked) == pytest.approx(trained.predict(subject(28), asked), abs=1e-5)
    again.update([Sample(subject(28), config, 1e-4 * (1 + config.integer("rows"))) for config in configs(28, 60)])
    times = [1e-4 * (1 + config.integer("rows")) for config in asked]
    assert accuracy(again.predict(subject(28), asked), times) > 0.8
