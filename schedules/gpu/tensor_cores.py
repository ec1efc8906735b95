"""Products and convolutions of narrow numbers on tensor cores."""

from __future__ import annotations

from typing import ClassVar

from schedules.config import Config
from schedules.gpu.depth_split import DepthSplit
from schedules.gpu.machine import LEAST_CAPABILITY, GpuMachine
from schedules.gpu.product_form import ProductForm
from schedules.gpu.product_rule import TiledProductRule
from schedules.gpu.tensor_code import Tile, tensor_product
from schedules.ir.tir import Stmt
from schedules.rule import GpuPriority


class GpuTensorCores(TiledProductRule):
    """Any product whose operands tensor cores take: sizes are filled up with zeros."""

    name: ClassVar[str] = "gpu-tensor-cores"
    version: ClassVar[int] = 3
    priority: ClassVar[int] = GpuPriority.TENSOR_CORES
    knobs: ClassVar[dict[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64, 128),
        "columns": (16, 32, 64, 128),
        "depth": (16, 32, 64),
    }
    full_warps: ClassVar[int] = 4
    launch_cost: ClassVar[int] = 1_300_000
    load_cost: ClassVar[int] = 32

    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        return dtype in LEAST_CAPABILITY and machine.compute_capability >= LEAST_CAPABILITY[dtype]

    def tile(self, config: Config) -> Tile:
        return Tile(config.integer("rows"), config.integer("columns"), config.integer("depth"))

    def launch(self, form: ProductForm, config: Config, split: DepthSplit | None) -> Stmt:
        return tensor_product(form, self.tile(config), split)
