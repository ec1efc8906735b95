"""Train a small net on scikit-learn's digits, quantize it for an Ethos-U accelerator, and run it in its simulator.

python -m examples.ethos_u_digits             # needs the extras ethos-u, torch and dev
python -m examples.ethos_u_digits --target cortex-m55+ethos-u55-256 --images 50
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

import tensorwright
from benchmarks.digits import DigitsCnn, load_digits, train


def main(arguments: Sequence[str] | None = None) -> None:
    """Quantize and compile, print the partition and its costs, and recognize some digits."""
    parser = argparse.ArgumentParser(prog="python -m examples.ethos_u_digits", description=__doc__)
    parser.add_argument("--target", default="cortex-m55+ethos-u55-128")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--images", type=int, default=100, help="how many test images to run")
    options = parser.parse_args(arguments)
    data = load_digits()
    net = train(DigitsCnn(options.channels), data, epochs=options.epochs)
    samples = [{"image": image[None]} for image in data.calibration[0][:32]]
    quantized = tensorwright.quantize(
        net, samples, target=options.target, max_drop=0.1, example_inputs=(torch.from_numpy(samples[0]["image"]),)
    )
    module = tensorwright.compile(quantized, options.target, threads=1)
    details: Any = module.manifest.target.details
    print("\n".join(details["partition"]["summary"]))
    images, labels = (part[: options.images] for part in data.test)
    (name,) = (spec.name for spec in module.manifest.outputs)
    found = [int(np.argmax(module.run({"image": image[None]})[name])) for image in images]
    print(f"share of {len(images)} test images recognized: {np.mean(np.array(found) == labels):.4f}")


if __name__ == "__main__":
    main()
