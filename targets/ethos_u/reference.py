"""TOSA graphs in Arm's reference model: what Vela's commands have to compute, and how a U85's modules run here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def run_graph(tosa: bytes, inputs: Sequence[Array]) -> list[Array] | None:
    """The outputs (flat) of a graph; None where the model does not take it. Inputs have the shapes that it says."""
    import tosa_reference_model

    outputs, status = tosa_reference_model.run(tosa, list(inputs), verbosity="NONE")
    if status != tosa_reference_model.GraphStatus.TOSA_VALID:
        return None
    return [np.asarray(each).ravel() for each in outputs]
