"""Products cut for many cores: right for odd sizes, and fine enough to keep the cores busy."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from schedules.machine import Machine
from schedules.matmul.tiling import MatmulSizes, split_matmul
from schedules.selection.apply import apply_schedules
from tests.schedules.harness import AVX512, Array, lowered, normal, run, runnable, target_of

_CORES = (1, 2, 3, 8, 32)


def _product(a: Array, b: Array, target: str, cores: int) -> Array:
    def build(builder: relax.BlockBuilder, x: relax.Var, y: relax.Var) -> relax.Var:
        return builder.emit(relax.op.nn.relu(builder.emit(relax.op.matmul(x, y))))

    mod = lowered(build, [(a.shape, "float32"), (b.shape, "float32")], target)
    scheduled, report = apply_schedules(mod, target_of(target).machine.model_copy(update={"cores": cores}))
    assert not report.failures, report.failures
    return run(scheduled, target, [a, b])


@pytest.mark.parametrize("target", runnable()[-1:])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((1, 25_003), (25_003, 40)),  # the depth is cut, with a short last part
        ((16, 8192), (8192, 16)),
        ((33, 6001), (6001, 7)),  # B is packed
        ((2, 5, 3000), (2, 3000, 19)),
        ((197, 64), (64, 197)),
        ((43, 300), (300, 130)),  # rows that fill no tile
        ((57, 33), (33, 1)),
    ],
)
def test_products_of_odd_sizes(a: tuple[int, ...], b: tuple[int, ...], target: str) -> None:
    x, y = normal(a, 1), normal(b, 2)
    exact = x.astype("float64") @ y.astype("float64")
    bound = 1e-6 * (np.abs(x).astype("float64") @ np.abs(y).astype("float64"))
    for cores in _CORES:
        assert np.all(np.abs(_product(x, y, target, cores) - np.maximum(exact, 0)) <= bound), cores


def _tasks(machine: Machine, rows: int, columns: int, depth: int, tile: tuple[int, int] = (14, 2)) -> int:
    panel = 16 * tile[1]
    work = MatmulSizes(1, rows, columns, depth, tile, panel, 16, (4, 4), 0.0, True, True)
    found = split_matmul(work, machine, rows_first=False)
    parts = -(-depth // found.depth) if found.depth else 1
    return int(found.chunks) * -(-columns // panel) * parts


@pytest.mark.parametrize("cores", [8, 16, 32])
@pytest.mark.parametrize(
    ("rows", "columns", "depth", "tile"),
    [(197, 768, 768, (14, 2)), (128, 384, 384, (14, 2)), (16, 16, 65_536, (16, 1)), (1, 64, 25_088, (1, 2))],
)
def test_every_core_has_its_share(rows: int, columns: int, depth: int, tile: tuple[int, int], cores: int) -> None:
    machine = target_of(AVX512).machine.model_copy(update={"cores": cores})
    tasks = _tasks(machine, rows, columns, depth, tile)
    assert tasks / (-(-tasks // cores) * cores) >= 0.85


def test_enough_panels_leave_the_depth_whole() -> None:
    machine = target_of(AVX512).machine
    work = MatmulSizes(1, 1, 4096, 4096, (1, 2), 32, 16, (4, 4), 0.0, True, True)
    for cores in _CORES:
        assert split_matmul(work, machine.model_copy(update={"cores": cores}), rows_first=False).depth == 0


@pytest.mark.parametrize("cores", [8, 32])
def test_short_products_are_not_slowed_down_on_two_threads(cores: int) -> None:
    """22 microseconds on one core: sums of parts of the depth would take an eighth longer on two."""
    machine = target_of(AVX512).machine.model_copy(update={"cores": cores})
    for rows, columns, depth, tile in ((32, 104, 384, (14, 2)), (16, 288, 288, (8, 2))):
        work = MatmulSizes(1, rows, columns, depth, tile, 16 * tile[1], 16, (4, 4), 0.0, True, True)
        assert split_matmul(work, machine, rows_first=False).depth == 0
