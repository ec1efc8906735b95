"""Modules for other architectures run under an emulator and give this machine's results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import compiler
from compiler.device.emulation import EmulatedExecutor, EmulatedModule
from compiler.errors import InputError, InternalError
from tests.compiler.device.emulators import target_that_runs


class _Net(torch.nn.Module):
    """Several kinds of convolutions, a matmul, attention and the functions with vector code."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = torch.nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.strided = torch.nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.query = torch.nn.Linear(32, 32)
        self.norm = torch.nn.LayerNorm(32)
        self.last = torch.nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.nn.functional.silu(self.depthwise(x)) + torch.sin(10 * x) * torch.atan(x)
        x = torch.nn.functional.gelu(self.strided(x)).flatten(2).transpose(1, 2)
        x = torch.nn.functional.scaled_dot_product_attention(
            self.query(x).unsqueeze(1), x.unsqueeze(1), torch.tanh(x).unsqueeze(1)
        ).squeeze(1)
        return torch.softmax(self.last(self.norm(x).mean(1)), -1)


@pytest.mark.parametrize("name", ["raspberry-pi-5", "raspberry-pi-2", "riscv64-linux"])
def test_numbers_are_those_of_pytorch(name: str) -> None:
    target = target_that_runs(name, cores=2)
    net = _Net().eval()
    example = torch.randn(2, 3, 14, 14)
    module = compiler.compile(net, target, example_inputs=(example,), threads=2)
    with torch.no_grad():
        expected = net(example).numpy()
    (actual,) = module.run([example.numpy()]).values()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def adder() -> compiler.Module:
    """x + y with a dynamic size and an additional integer sum, for the generic target."""

    class Adder(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x.to(torch.int64).sum(dim=0)

    target = target_that_runs("aarch64-linux")
    batch = torch.export.Dim("batch", min=1, max=64)
    arguments = (torch.randn(3, 5), torch.randn(3, 5))
    return compiler.compile(Adder().eval(), target, example_inputs=arguments, dynamic_shapes=({0: batch}, {0: batch}))


def test_open_sizes_and_other_types_pass_through(adder: compiler.Module) -> None:
    x, y = (np.random.default_rng(seed).normal(0, 9, (7, 5)).astype("float32") for seed in (1, 2))
    total, count = adder.run([x, y]).values()
    np.testing.assert_array_equal(total, x + y)
    np.testing.assert_array_equal(count, x.astype(np.int64).sum(0))
    assert count.dtype == np.int64


def test_wrong_inputs_are_refused_before_anything_runs(adder: compiler.Module) -> None:
    with pytest.raises(InputError, match="dimension 1 is 4"):
        adder.run([np.zeros((3, 4), "float32"), np.zeros((3, 4), "float32")])


def test_a_damaged_file_is_refused_on_the_device(adder: compiler.Module, tmp_path: Path) -> None:
    executor = adder._executor
    assert isinstance(executor, EmulatedExecutor)
    emulator = executor._emulated()
    assert isinstance(emulator, EmulatedModule)
    whole = emulator.file.read_bytes()
    for position in (20, 100, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        emulator.file.write_bytes(damaged)
        with pytest.raises(InternalError, match=r"is damaged|not a module|newer"):
            emulator.execute([])
    emulator.file.write_bytes(whole)
    assert "float32[" in emulator.execute([])
