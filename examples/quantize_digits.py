"""Train a small net on scikit-learn's digits, quantize it to 8-bit integers, and measure the loss in accuracy.

python -m examples.quantize_digits            # needs the extras torch and dev
python -m examples.quantize_digits --report digits.html
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import tensorwright
from benchmarks.digits import DigitsCnn, accuracy, load_digits, train


def quantize_digits(epochs: int = 8, channels: int = 16, max_drop: float = 0.01) -> tensorwright.QuantizedModel:
    """Train and quantize the net, losing at most `max_drop` of its test accuracy."""
    data = load_digits()
    net = train(DigitsCnn(channels), data, epochs=epochs)
    images = data.calibration[0]
    return tensorwright.quantize(
        net,
        [{"image": images[start : start + 50]} for start in range(0, 100, 50)],
        evaluate=accuracy(data),
        max_drop=max_drop,
        example_inputs=(torch.from_numpy(images[:50]),),
        threads=1,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantize and compile the net, and print the changes."""
    parser = argparse.ArgumentParser(prog="python -m examples.quantize_digits", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--report", help="an .html or .json file about every layer")
    options = parser.parse_args(arguments)
    quantized = quantize_digits(options.epochs, options.channels)
    print(quantized.report)
    module = tensorwright.compile(quantized, threads=1)
    print(f"share of the test images recognized, compiled: {accuracy(load_digits())(module.run):.4f}")
    if options.report:
        quantized.report.save(options.report)


if __name__ == "__main__":
    main()
