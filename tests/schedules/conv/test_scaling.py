"""The modelled speedup of convolutions of usual nets, of one image on many cores."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
import torchvision

from benchmarks.catalog import TORCHVISION_NETS
from schedules.conv.direct import ConvDirect
from schedules.conv.direct_nest import split_direct
from schedules.conv.window import Depthwise, split_window
from schedules.conv.winograd import Winograd
from schedules.conv.winograd_tiling import Register, split_winograd, winograd_form, winograd_plan
from schedules.conv.workload import ConvWorkload, WindowWorkload, WinogradWorkload
from schedules.machine import Machine
from schedules.task_split import TaskSplit

BOUND = 400_000.0
"""Cycles of some 100 microseconds on one core: no convolution with more may stay on one."""
SMALL = 4 * BOUND  # with less, starting 32 threads takes a quarter of the time
# (channels, filters, side of the input, kernel, stride, groups)
NETS = {
    "resnet50": [
        (3, 64, 224, 7, 2, 1), (64, 64, 56, 3, 1, 1), (256, 512, 56, 1, 2, 1), (512, 128, 28, 1, 1, 1),
        (256, 256, 14, 3, 1, 1), (1024, 256, 14, 1, 1, 1), (512, 512, 14, 3, 2, 1), (512, 512, 7, 3, 1, 1),
        (2048, 512, 7, 1, 1, 1), (512, 2048, 7, 1, 1, 1),
    ],
    "vgg19": [(3, 64, 224, 3, 1, 1), (128, 128, 112, 3, 1, 1), (512, 512, 28, 3, 1, 1), (512, 512, 14, 3, 1, 1)],
    "densenet121": [(64, 128, 56, 1, 1, 1), (128, 32, 28, 3, 1, 1), (992, 128, 7, 1, 1, 1), (1024, 512, 14, 1, 1, 1)],
    "convnext_tiny": [(3, 96, 224, 4, 4, 1), (192, 384, 28, 2, 2, 1), (384, 768, 14, 2, 2, 1)],
    "mobilenet_v2": [(3, 32, 224, 3, 2, 1), (24, 144, 56, 1, 1, 1), (576, 96, 14, 1, 1, 1), (320, 1280, 7, 1, 1, 1)],
    "alexnet of two groups": [(96, 256, 27, 5, 1, 2), (384, 256, 13, 3, 1, 2)],
    "resnext50": [(512, 512, 28, 3, 1, 32), (1024, 1024, 7, 3, 1, 32)],
    "yolo": [(3, 16, 640, 3, 2, 1), (64, 64, 80, 3, 1, 1), (256, 256, 20, 1, 1, 1), (128, 128, 20, 3, 1, 1)],
}  # fmt: skip
DEPTHWISE = [(32, 112, 3, 1), (144, 56, 3, 2), (960, 7, 3, 1), (96, 56, 7, 1), (768, 7, 7, 1)]


def machine(cores: int) -> Machine:
    return Machine(
        architecture="x86_64",
        vector_bits=512,
        vector_registers=32,
        l2_bytes=1 << 20,
        l3_bytes=32 << 20,
        fma_ports=1,
        memory_rate=1000.0,  # or Winograd's weights of 512 channels, 16.8 MB, bound 32 cores
        cores=cores,
    )


def workload(channels: int, filters: int, side: int, kernel: int, stride: int, groups: int) -> ConvWorkload:
    pad = ((kernel // 2,) * 2,) * 2 if kernel != stride else ((0, 0),) * 2
    block = 16 if channels > 3 else 1
    return ConvWorkload(
        1, channels, 16, (side, side), (kernel,) * 2, (stride,) * 2, (1, 1), pad, "float32", filters, groups, block
    )  # fmt: skip


def speedup(found: TaskSplit) -> float:
    """Over the same tasks on one core; starting the threads counts."""
    return found.serial_cycles / found.cycles


@pytest.mark.parametrize(("cores", "share"), [(8, 0.85), (16, 0.75), (32, 0.6)])
@pytest.mark.parametrize("net", NETS)
def test_direct_convolutions_scale(net: str, cores: int, share: float) -> None:
    alone, together = 0.0, 0.0
    for work in [workload(*each) for each in NETS[net]]:
        config = ConvDirect().default(work, machine(cores))
        found = split_direct(work, config, machine(cores), copies=work.reaches_outside)
        assert found.parallel or found.serial_cycles < BOUND, work
        if found.serial_cycles > SMALL:
            assert speedup(found) > 0.6 * share * cores, (work, found)
            alone, together = alone + found.serial_cycles, together + found.cycles
    assert alone >= share * cores * together


@pytest.mark.parametrize(("cores", "share"), [(8, 0.85), (16, 0.7), (32, 0.55)])
def test_winograd_convolutions_scale(cores: int, share: float) -> None:
    """Against one core by itself: what is transformed again for each cut of the channels counts."""
    for channels, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        work = workload(channels, channels, side, 3, 1, 1)
        whole = WinogradWorkload(**vars(work), tile=2)

        def time(cores: int, whole: WinogradWorkload = whole) -> float:
            config = Winograd().default(whole, machine(cores))
            register = Register(*(config.integer(name) for name in ("blocks", "pixels", "tiles", "chunks")))
            return split_winograd(whole, register, machine(cores)).cycles

        assert time(1) / time(cores) > share * cores, (channels, side)


@pytest.mark.parametrize("cores", [8, 16, 32])
def test_depthwise_convolutions_do_not_stay_on_one_core(cores: int) -> None:
    for channels, side, kernel, stride in DEPTHWISE:
        pad = ((kernel // 2,) * 2,) * 2
        work = WindowWorkload(1, channels, 16, (side, side), (kernel,) * 2, (stride,) * 2, (1, 1), pad, "float32")
        config = Depthwise().default(work, machine(cores))
        found = split_window(
            work, work.out_spatial[0], config.integer("pixels"), config.integer("splits"), machine(cores)
        )
        assert found.parallel or found.serial_cycles < BOUND, work
        assert speedup(found) > 0.6 * cores or found.serial_cycles < SMALL, (work, found)


@cache
def catalog_convolutions() -> list[ConvWorkload]:
    """The distinct convolutions of the catalog's nets of torchvision with `BOUND` of arithmetic."""
    found: dict[ConvWorkload, None] = {}

    def note(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert isinstance(layer, torch.nn.Conv2d)
        pad = tuple((int(each), int(each)) for each in layer.padding)
        block, spatial = 16 if layer.in_channels >= 16 else 1, tuple(inputs[0].shape[2:])
        window = layer.kernel_size, layer.stride, layer.dilation, pad, "float32"
        work = ConvWorkload(
            1, layer.in_channels, 16, spatial, *window, layer.out_channels, layer.groups, block
        )  # fmt: skip
        if work.flops > 32 * BOUND:
            found[work] = None

    for name in TORCHVISION_NETS:
        with torch.device("cpu" if name.startswith("regnet") else "meta"):  # regnet's sizes are tensors' values
            net = torchvision.models.get_model(name, weights=None).eval().to("meta")
        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(note)
        net(torch.empty(1, 3, 224, 224, device="meta"))
    return list(found)


def test_no_convolution_of_the_catalog_is_serial_on_32_cores() -> None:
    works = catalog_convolutions()
    assert len(works) > 50
    for work in works:
        many = machine(32)
        form = winograd_form(work, many, 1e-6)
        if work.groups == work.channels == work.filters:
            window = WindowWorkload(**{name: getattr(work, name) for name in WindowWorkload.__dataclass_fields__})
            config = Depthwise().default(window, many)
            knobs = config.integer("pixels"), config.integer("splits")
            found = split_window(window, window.out_spatial[0], *knobs, many)
        elif form is not None:
            config = Winograd().default(form, many)
            register = Register(*(config.integer(name) for name in ("blocks", "pixels", "tiles", "chunks")))
            found = split_winograd(form, register, many).products
        else:
            direct = replace(work, block=16)
            found = split_direct(direct, ConvDirect().default(direct, many), many, copies=direct.reaches_outside)
        assert found.parallel or found.serial_cycles < BOUND, work


def test_tasks_have_enough_tiles_for_the_weights_that_they_bring() -> None:
    """Each of 25 tasks of two tiles would read 262 KB, more than the second cache holds, for a few multiply-adds."""
    avx2 = {"vector_bits": 256, "vector_registers": 16, "l2_bytes": 512 << 10, "fma_ports": 2, "memory_rate": 10.0}
    many = machine(32).model_copy(update=avx2)
    work = replace(workload(128, 32, 14, 3, 1, 1), block=8, in_block=8)
    forms = [WinogradWorkload(**vars(work), tile=tile) for tile in (2, 4)]
    plan = min((winograd_plan(form, many) for form in forms), key=lambda each: each.weighted)
    assert plan.tiles >= 4
