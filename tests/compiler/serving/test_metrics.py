from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from compiler.serving.metrics import HistogramTally


def test_tallies_give_the_numbers_that_the_library_counts() -> None:
    texts = []
    values = [0.0, 0.1, 0.1000001, 1.0, 7.5, *np.random.default_rng(0).uniform(0, 2, 50).tolist()]
    for tallied in (False, True):
        registry = CollectorRegistry()
        histogram = Histogram("seconds", "Of runs.", ("model",), buckets=(0.1, 0.5, 1.0), registry=registry).labels("a")
        tally = HistogramTally(histogram)
        for value in values:
            (tally if tallied else histogram).observe(value)
            if value == 1.0:
                tally.flush()
        tally.flush()
        tally.flush()
        lines = generate_latest(registry).decode().splitlines()
        texts.append([line for line in lines if "_created" not in line and "_sum" not in line])
        (total,) = [float(line.split()[-1]) for line in lines if line.startswith("seconds_sum")]
        np.testing.assert_allclose(total, sum(values))
    assert texts[0] == texts[1]
