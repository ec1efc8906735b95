"""Configs, spaces and machine descriptions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from schedules import Config, ConfigSpace, Machine
from schedules.errors import ConfigError

SPACE = ConfigSpace(
    {"rows": (1, 2, 4), "columns": (16, 32)}, (lambda c: c.integer("rows") * c.integer("columns") <= 64,)
)


def test_a_config_survives_json_and_hashes_by_value() -> None:
    config = Config.of(rows=2, columns=16)
    assert Config.from_json(config.to_json()) == config
    assert len({config, Config.of({"columns": 16}, rows=2)}) == 1
    assert config.replace(rows=4)["rows"] == 4


@pytest.mark.parametrize("text", ["[1]", "{", "3"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(text)


def test_a_space_lists_only_what_meets_the_constraints() -> None:
    configs = list(SPACE)
    assert SPACE.size == 6
    assert len(configs) == 5
    assert Config.of(rows=4, columns=32) not in SPACE
    assert all(config in SPACE for config in configs)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rows": 1, "columns": 16, "depth": 1}, "depth"),
        ({"rows": 3, "columns": 16}, "rows"),
        ({"rows": 4, "columns": 32}, "constraint"),
    ],
)
def test_check_names_what_is_wrong(knobs: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SPACE.check(Config.of(knobs))


def test_lanes_follow_the_dtype() -> None:
    machine = Machine(vector_bits=512)
    assert [machine.lanes(t) for t in ("float32", "int8", "bool", "bfloat16", "float64")] == [
        16,
        64,
        64,
        32,
        8,
    ]
    assert Machine(vector_bits=32).lanes("float64") == 1


def test_a_machine_survives_json_and_refuses_unknown_fields() -> None:
    machine = Machine(vector_bits=256, features=frozenset({"avx2", "fma"}), cores=4)
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
    assert machine.has("avx2")
    assert not machine.has("avx2", "avx512f")
    with pytest.raises(ValidationError):
        Machine.model_validate({"vector_bytes": 64})
