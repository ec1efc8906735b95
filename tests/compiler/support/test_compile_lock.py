"""Threads that compile at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import compiler
from compiler.support.compilation import one_at_a_time


def test_four_threads_compile_torch_modules() -> None:
    torch = pytest.importorskip("torch")

    def difference(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.GELU(), torch.nn.Conv2d(8, 4, 1)
        ).eval()
        image = torch.randn(1, 3, 16 + seed, 16, generator=generator)
        module = compiler.compile(net, example_inputs=(image,))
        with torch.no_grad():
            expected = net(image).numpy()
        (output,) = module.run([image.numpy()]).values()
        return float(np.abs(output - expected).max())

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(difference, range(4))) < 1e-5


def test_one_thread_at_a_time_and_a_thread_within_itself() -> None:
    inside = 0
    most = 0

    @one_at_a_time
    def enter(depth: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if depth:
            inside -= 1
            enter(depth - 1)
            inside += 1
        np.linalg.svd(np.ones((64, 64)))  # without the interpreter's lock
        inside -= 1

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(enter, [2] * 16))
    assert most == 1
