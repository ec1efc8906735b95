"""Quantization-aware training: train a net with simulated rounding to 8-bit integers, and compile the result.

torchao inserts fake quantization into an exported net and converts the trained net. The converted
net is imported as an integer model: its convolutions become integer kernels.

python -m examples.train_quantized            # needs the extras torch and dev
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tensorwright
from benchmarks.digits import Digits, DigitsCnn, accuracy, load_digits, train

# Schedule rules that multiply bytes; a depthwise integer convolution uses "conv-depthwise".
INTEGER_RULES = ("conv-dot", "matmul-int8")


@dataclass(frozen=True)
class Trained:
    """A compiled net, torch's results for the same integer net, and accuracies on the test images."""

    module: tensorwright.Module
    converted: torch.nn.Module
    images: NDArray[np.float32]
    float_score: float
    integer_score: float


def train_quantized(channels: int = 16, epochs: int = 8, rounded_epochs: int = 2, batch: int = 50) -> Trained:
    """Train in float, then with rounding, and compile the result for batches of `batch` images."""
    data = load_digits()
    net = train(DigitsCnn(channels), data, epochs=epochs)
    images = data.test[0][:batch]
    before = tensorwright.compile(net, example_inputs=(torch.from_numpy(images),), threads=1)
    converted = _trained_with_rounding(net, data, rounded_epochs, batch)
    module = tensorwright.compile(torch.export.export(converted, (torch.from_numpy(images),)), threads=1)
    measure = accuracy(data, batch=batch)
    return Trained(module, converted, images, measure(before.run), measure(module.run))


def _trained_with_rounding(net: torch.nn.Module, data: Digits, epochs: int, batch: int) -> torch.nn.Module:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    images, labels = (torch.from_numpy(part) for part in data.train)
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    exported = torch.export.export(net.train(), (images[:batch],), dynamic_shapes=sizes).module()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=True))
    prepared = prepare_qat_pt2e(exported, quantizer)
    optimizer = torch.optim.Adam(prepared.parameters(), 3e-4)
    torch.manual_seed(0)
    for _ in range(epochs):
        order: Any = torch.randperm(len(labels))
        for part in order.split(batch):
            optimizer.zero_grad()
            loss: Any = torch.nn.functional.cross_entropy(prepared(images[part]), labels[part])
            loss.backward()
            optimizer.step()
    move_exported_model_to_eval(prepared)
    converted: torch.nn.Module = convert_pt2e(prepared)
    return converted


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and compile the net, and print the changes."""
    parser = argparse.ArgumentParser(prog="python -m examples.train_quantized", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    options = parser.parse_args(arguments)
    trained = train_quantized(options.channels, options.epochs)
    with torch.no_grad():
        wanted = trained.converted(torch.from_numpy(trained.images)).numpy()
    (got,) = trained.module.run([trained.images]).values()
    integer = sum(each.rule in INTEGER_RULES for each in trained.module.manifest.kernels)
    print(
        f"share of the test images recognized: {trained.float_score:.4f} in float, {trained.integer_score:.4f} rounded"
    )
    difference = np.abs(got - wanted).max()
    print(f"{integer} kernels multiply bytes; the largest difference to torch's own integers: {difference:.2g}")


if __name__ == "__main__":
    main()
