"""Products and convolutions of float32, which stay float32: no tensor cores."""

from __future__ import annotations

from typing import ClassVar

from schedules.config import Config
from schedules.gpu.depth_split import DepthSplit
from schedules.gpu.machine import GpuMachine
from schedules.gpu.plain_code import PlainTile, plain_product
from schedules.gpu.product_form import ProductForm
from schedules.gpu.product_rule import TiledProductRule
from schedules.ir.tir import Stmt
from schedules.rule import GpuPriority


class GpuProducts(TiledProductRule):
    """A product of float32 in tiles of shared memory and registers."""

    name: ClassVar[str] = "gpu-products"
    version: ClassVar[int] = 3
    priority: ClassVar[int] = GpuPriority.PRODUCT
    knobs: ClassVar[dict[str, tuple[int, ...]]] = {
        "rows": (16, 32, 64, 128),
        "columns": (32, 64, 128),
        "depth": (8, 16),
    }
    full_warps: ClassVar[int] = 8
    launch_cost: ClassVar[int] = 330_000
    load_cost: ClassVar[int] = 8

    def multiplies(self, dtype: str, machine: GpuMachine) -> bool:
        return dtype == "float32"

    def tile(self, config: Config) -> PlainTile:
        return PlainTile(config.integer("rows"), config.integer("columns"), config.integer("depth"))

    def launch(self, form: ProductForm, config: Config, split: DepthSplit | None) -> Stmt:
        return plain_product(form, self.tile(config), split)
