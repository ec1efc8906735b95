"""Convolutions and pooling cut for any number of cores, against the definition in float64.

Threads are free here, or no small shape would be cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import targets
from schedules import task_split
from schedules.conv.direct_nest import split_direct
from schedules.conv.winograd_tiling import split_winograd, winograd_plan
from schedules.conv.workload import DotWorkload
from schedules.machine import Machine
from tests.schedules.blocked import AVX2, AVX512
from tests.schedules.conv import (
    test_direct,
    test_dot,
    test_folded,
    test_sparse,
    test_window,
    test_winograd,
    test_winograd_integer,
)

_HOST = targets.get("host").machine.features
CORES = (1, 2, 3, 8, 32)
SOME: dict[str, Any] = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def _free_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cached = (split_direct, split_winograd, winograd_plan)
    for name in ("START_CYCLES", "START_CYCLES_OF_THREAD", "TASK_CYCLES"):
        monkeypatch.setattr(task_split, name, 1e-9)  # not 0: thresholds are ratios of these
    for each in cached:
        each.cache_clear()
    yield
    for each in cached:
        each.cache_clear()


def of(machine: Machine, cores: int) -> Machine:
    return machine.model_copy(update={"cores": cores})


@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=4, **SOME)
@given(case=test_direct.convolutions(), groups=st.sampled_from([1, 1, 2, 5]), symbolic=st.booleans())
def test_direct_convolution(cores: int, case: dict[str, Any], groups: int, symbolic: bool) -> None:
    if groups > 1:
        case = {**case, "channels": 16 * groups, "filters": 48 * groups, "planar": False}
    test_direct.check(of(AVX512, cores), case, groups, symbolic)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("filters", [112, 160])
def test_small_maps_with_many_channels(cores: int, filters: int) -> None:
    case = {**test_direct._COMMON, "channels": 37, "filters": filters, "spatial": (7, 5)}
    test_direct.check(of(AVX512, cores), case)


@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=2, **SOME)
@given(case=test_winograd.shapes(), filters=st.sampled_from([40, 72]), form=st.sampled_from(test_winograd.FORMS))
def test_winograd_convolution(cores: int, case: dict[str, Any], filters: int, form: tuple[int, int]) -> None:
    test_winograd.check(of(AVX2, cores), {**case, "filters": filters}, form)


@pytest.mark.skipif("avx2" not in _HOST, reason="this machine has no AVX2")
@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=2, **SOME)
@given(work=test_winograd_integer.cases())
def test_integer_winograd_convolution(cores: int, work: DotWorkload) -> None:
    test_winograd_integer.check(work, of(test_winograd_integer.PAIRS, cores))


@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=2, **SOME)
@given(case=test_window.windows(), mode=st.sampled_from(["max", "average"]), count_pad=st.booleans())
def test_depthwise_convolution_and_pooling(cores: int, case: dict[str, Any], mode: str, count_pad: bool) -> None:
    test_window.check_depthwise(of(AVX512, cores), case)
    test_window.check_pooling(of(AVX512, cores), case, mode, count_pad)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("mode", ["max", "average"])
def test_global_pooling(cores: int, mode: str) -> None:
    test_window.check_global_pooling(of(AVX2, cores), mode, (3, 13))


@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=2, **SOME)
@given(case=test_folded.convolutions())
def test_folded_convolution(cores: int, case: dict[str, Any]) -> None:
    test_folded.check(of(AVX512, cores), case)


@pytest.mark.parametrize("cores", CORES)
@settings(max_examples=2, **SOME)
@given(case=test_sparse.convolutions())
def test_sparse_convolution(cores: int, case: dict[str, Any]) -> None:
    test_sparse.check(of(AVX512, cores), case)


@pytest.mark.parametrize("cores", CORES)
@pytest.mark.parametrize("kind", ["uint16", "uint8", "int8"])
@settings(max_examples=2, **SOME)
@given(case=test_direct.convolutions(), machine=st.sampled_from(test_dot.RUNNABLE))
def test_convolution_of_narrow_operands(kind: str, cores: int, case: dict[str, Any], machine: str) -> None:
    test_dot.check(of(test_dot.MACHINES[machine], cores), kind, case)
