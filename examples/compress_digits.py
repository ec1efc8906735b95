"""Train a small net on scikit-learn's digits, then prune it, distill it from the original, and quantize it.

python -m examples.compress_digits            # needs the extras torch and dev
python -m examples.compress_digits --report digits.html
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch

import tensorwright
from benchmarks.digits import Digits, DigitsCnn, accuracy, load_digits, train
from compiler.compression.recipe import RecipeResult


def compress_digits(net: torch.nn.Module, data: Digits, epochs: int = 8, max_drop: float = 0.1) -> RecipeResult:
    """Remove half of the channels and quantize to 8 bits, losing at most `max_drop` of the test accuracy."""
    images: Any
    labels: Any
    images, labels = (torch.from_numpy(part) for part in data.train)
    samples = data.calibration[0]
    recipe: list[Any] = [
        {"prune": {"amount": 0.5, "max_drop": 0.99}},
        {"distill": {"epochs": epochs, "learning_rate": 2e-3}},
        "quantize",
    ]
    return tensorwright.compress(
        net,
        recipe,
        evaluate=accuracy(data),
        max_drop=max_drop,
        calibration=[{"image": samples[start : start + 50]} for start in range(0, 100, 50)],
        example_inputs=(torch.from_numpy(samples[:50]),),
        threads=1,
        prune={"finetune": lambda net: None},  # distillation trains it
        distill={
            "teacher": copy.deepcopy(net),
            "batches": list(zip(images.split(50), labels.split(50), strict=True)),
        },
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and compress the net, and print one row per step."""
    parser = argparse.ArgumentParser(prog="python -m examples.compress_digits", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--max-drop", type=float, default=0.1)
    parser.add_argument("--report", help="an .html or .json file with the Pareto front")
    options = parser.parse_args(arguments)
    data = load_digits()
    torch.set_num_threads(1)
    result = compress_digits(train(DigitsCnn(), data), data, options.epochs, options.max_drop)
    print(result.report)
    module = tensorwright.compile(result, threads=1)
    print(f"share of the test images recognized, compiled: {accuracy(data)(module.run):.4f}")
    if options.report:
        result.report.save(options.report)


if __name__ == "__main__":
    main()
