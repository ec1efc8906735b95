"""Arm's Ethos-U accelerators beside a Cortex-M processor. The presets are data (`presets.json`).

What a model computes in 8-bit integers goes to the accelerator, by way of TOSA and Arm's compiler Vela; the rest to the
processor. Here the accelerator is simulated, and this machine stands for the processor.
"""

from __future__ import annotations

from targets.ethos_u.target import EthosU, presets

__all__ = ["EthosU", "presets"]
