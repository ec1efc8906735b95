"""A net trained with rounding comes in as integers, equal to what torch computes with them."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.filterwarnings("ignore")
def test_the_example() -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torchao")
    import torch

    from examples.train_quantized import INTEGER_RULES, train_quantized

    trained = train_quantized(channels=8, epochs=3, rounded_epochs=1)
    assert trained.float_score > 0.5  # ten digits: guessing gives 0.1
    assert trained.integer_score > trained.float_score - 0.03
    with torch.no_grad():
        wanted = trained.converted(torch.from_numpy(trained.images)).numpy()
    (got,) = trained.module.run([trained.images]).values()
    # The same integers on both sides, but where a sum of torch, in float32, lies within its rounding errors of the
    # middle between two steps (in 3 of 50 images as trained on Zen 3), which moves the result by a step.
    steps = np.abs(got - wanted).max(axis=1) / np.abs(wanted).max()
    assert np.mean(steps > 1e-5) <= 0.1
    assert steps.max() < 1 / 127
    rules = [each.rule for each in trained.module.manifest.kernels if "conv2d" in each.kernel]
    assert set(rules) <= {*INTEGER_RULES, "conv-depthwise"}
    assert sum(rule in INTEGER_RULES for rule in rules) >= 5
    assert all(
        "quantize" in each.kernel or "cast" in each.kernel
        for each in trained.module.manifest.kernels
        if each.rule in INTEGER_RULES
    )
