"""The performance model of GPUs, compared with published times of kernels.

    git clone https://github.com/siboehm/SGEMM_CUDA sgemm
    git clone https://github.com/leimao/CUDA-GEMM-Optimization gemm
    python -m benchmarks.cuda_model --sgemm sgemm --gemm gemm --output benchmarks/results/cuda-model.json

Both repositories contain matmuls of 4096 by 4096 matrices in steps from a naive kernel to a good one, and the speed of
each on one device (an RTX A6000, and an RTX 3090). nvcc compiles them unchanged; the model estimates their speed. The
result is the fraction of pairs with published speeds more than 5 % apart that the model orders correctly.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from compiler.artifact.storage import write_atomically
from targets.cuda.nvcc import find_nvcc
from targets.cuda.performance import program
from targets.cuda.performance.execution import Launch
from targets.cuda.performance.measurer import Device, estimate_launch

_SIZE = 4096
_APART = 1.05
_A6000 = Device(86, 84, 1.80e9, 768e9, 1800)
_RTX_3090 = Device(86, 82, 1.695e9, 936e9, 1800)
_CUBLAS = "#include <cublas_v2.h>"
_INCLUDE = re.compile(r'#include "([^"]+)"')
_ARGUMENTS = ("const float*, const float*", "float*, float*")


@dataclass(frozen=True)
class Published:
    """A kernel: its file, what to append to it, the size of its blocks and of the (square) grid, and GFLOP/s."""

    source: str
    kernel: str
    instance: str
    block: tuple[int, int]
    grid: tuple[int, int]
    speed: float


_SGEMM = (
    Published("1_naive", "sgemm_naive", "", (32, 32), (128, 128), 309.0),
    Published("2_kernel_global_mem_coalesce", "sgemm_global_mem_coalesce", "32", (1024, 1), (128, 128), 1986.5),
    Published("3_kernel_shared_mem_blocking", "sgemm_shared_mem_block", "32", (1024, 1), (128, 128), 2980.3),
    Published("4_kernel_1D_blocktiling", "sgemm1DBlocktiling", "64,64,8,8", (512, 1), (64, 64), 8474.7),
    Published("5_kernel_2D_blocktiling", "sgemm2DBlocktiling", "128,128,8,8,8", (256, 1), (32, 32), 15971.7),
    Published(
        "7_kernel_resolve_bank_conflicts", "sgemmResolveBankConflicts", "128,128,8,8,8", (256, 1), (32, 32), 16213.4
    ),
    Published("8_kernel_bank_extra_col", "sgemmResolveBankExtraCol", "128,128,8,8,8", (256, 1), (32, 32), 16459.2),
    Published("6_kernel_vectorize", "sgemmVectorize", "128,128,8,8,8", (256, 1), (32, 32), 18237.3),
    Published("9_kernel_autotuned", "sgemmAutotuned", "128,128,16,8,8", (256, 1), (32, 32), 19721.0),
    Published("10_kernel_warptiling", "sgemmWarptiling", "128,128,16,64,64,4,8,4,128", (128, 1), (32, 32), 21779.3),
)
_TILED = "02_2d_block_tiling"
_LINES = "03_2d_block_tiling_1d_thread_tiling"
_SQUARES = "04_2d_block_tiling_2d_thread_tiling"
_TRANSPOSED = "05_2d_block_tiling_2d_thread_tiling_matrix_transpose"
_WARPS = "06_2d_block_tiling_2d_warp_tiling_2d_thread_tiling_matrix_transpose"
_VECTORS = "_vectorized_memory_access"
_GEMM = (
    Published("00_non_coalesced_global_memory_access", "If", "", (32, 32), (128, 128), 278.129),
    Published("01_coalesced_global_memory_access", "If", "", (32, 32), (128, 128), 1721.8),
    Published(_TILED, "If", "", (32, 32), (128, 128), 2661.57),
    Published(_TILED + _VECTORS, "If", "", (32, 32), (128, 128), 1905.14),
    Published(_LINES, "If", "", (512, 1), (64, 64), 8913.18),
    Published(_LINES + _VECTORS, "If", "", (512, 1), (64, 64), 4047.96),
    Published(_SQUARES, "If", "", (256, 1), (32, 32), 13024.7),
    Published(_SQUARES + _VECTORS, "If", "", (256, 1), (32, 32), 15027.0),
    Published(_TRANSPOSED, "If", "", (256, 1), (32, 32), 11144.8),
    Published(_TRANSPOSED + _VECTORS, "If", "", (256, 1), (32, 32), 19668.8),
    Published(_WARPS, "If", "", (256, 1), (32, 32), 11070.3),
    Published(_WARPS + _VECTORS, "If", "", (256, 1), (32, 32), 20164.9),
)


@dataclass(frozen=True)
class Compared:
    """GFLOP/s of a kernel."""

    kernel: str
    published: float
    modelled: float


def main() -> int:
    """Compare, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sgemm", type=Path, help="a checkout of siboehm/SGEMM_CUDA")
    parser.add_argument("--gemm", type=Path, help="a checkout of leimao/CUDA-GEMM-Optimization")
    parser.add_argument("--output", type=Path, help="output file (JSON)")
    options = parser.parse_args()
    results = {}
    if options.sgemm:
        results["SGEMM_CUDA, RTX A6000"] = _summary(list(_sgemm(options.sgemm / "src" / "kernels")))
    if options.gemm:
        results["CUDA-GEMM-Optimization, RTX 3090"] = _summary(list(_gemm(options.gemm)))
    for name, each in results.items():
        print(f"{name}: {each['in_order']} of {each['pairs']} pairs in order; modelled over published: {each['ratio']}")
        for kernel in each["kernels"]:
            print(f"  {kernel['kernel']:72s} {kernel['published']:9.1f} {kernel['modelled']:9.1f}")
    if options.output:
        write_atomically(options.output, [json.dumps(results, indent=1).encode() + b"\n"])
    return 0


def _sgemm(folder: Path) -> Iterator[Compared]:
    for published in _SGEMM:
        text = (folder / f"{published.source}.cuh").read_text(encoding="utf-8").replace(_CUBLAS, "")
        if published.instance:
            signature = re.search(r"__global__ void[^{]*", text)
            matrices = _ARGUMENTS["const float" not in (signature[0] if signature else "")]
            arguments = f"int, int, int, float, {matrices}, float, float*"
            text += f"\ntemplate __global__ void {published.kernel}<{published.instance}>({arguments});\n"
        yield _compared(published, text, _A6000, range(3))


def _gemm(folder: Path) -> Iterator[Compared]:
    headers = {path.name: path.read_text(encoding="utf-8") for path in (folder / "include").iterdir()}
    for each in _GEMM:
        text = (folder / "src" / f"{each.source}.cu").read_text(encoding="utf-8")
        yield _compared(each, _with_headers(text, headers), _RTX_3090, (0, 1, 2, 5, 7, 10))


def _with_headers(text: str, headers: dict[str, str]) -> str:
    """Source with the repository's own headers in it, each once."""
    known: set[str] = set()

    def content(match: re.Match[str]) -> str:
        name = match[1]
        if name not in headers:
            return match[0]
        if name in known:
            return ""
        known.add(name)
        return _INCLUDE.sub(content, headers[name])

    return _INCLUDE.sub(content, text)


def _compared(published: Published, text: str, device: Device, sizes: range | tuple[int, ...]) -> Compared:
    code, resources = find_nvcc().assembled(text, device.compute_capability)
    kernel = next(candidate for candidate in program.parse(code) if published.kernel in candidate.name)
    (used,) = [candidate for candidate in resources if candidate.kernel == kernel.name]
    scalars = {name: _SIZE for place, (_, name) in enumerate(kernel.parameters) if place in sizes}
    launch = Launch((*published.block, 1), (*published.grid, 1), scalars)
    estimate = estimate_launch(kernel, used, launch, device, 3 * 4 * _SIZE**2)
    return Compared(published.source, published.speed, 2e-9 * _SIZE**3 / estimate.seconds)


def _summary(kernels: list[Compared]) -> dict[str, Any]:
    # Equal estimates do not count as in order.
    pairs = [
        (one.published - other.published) * (one.modelled - other.modelled) > 0
        for one, other in combinations(kernels, 2)
        if max(one.published, other.published) > _APART * min(one.published, other.published)
    ]
    ratios = [each.modelled / each.published for each in kernels]
    return {
        "pairs": len(pairs),
        "in_order": sum(pairs),
        "ratio": f"{min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}",
        "kernels": [asdict(each) for each in kernels],
    }


if __name__ == "__main__":
    sys.exit(main())
