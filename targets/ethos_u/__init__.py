"""Arm's Ethos-U accelerators with a Cortex-M host processor. The presets are data (`presets.json`).

The parts of a model in 8-bit integers are compiled for the accelerator, through TOSA and Arm's compiler Vela; the rest
runs on the host processor. Here the accelerator is simulated, and this machine takes the host processor's role.
"""

from __future__ import annotations

from targets.ethos_u.target import EthosU, presets

__all__ = ["EthosU", "presets"]
