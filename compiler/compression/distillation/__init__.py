"""Knowledge distillation of torch models: `distill`."""

from compiler.compression.distillation.driver import DistillationReport, DistilledModel, distill

__all__ = ["DistillationReport", "DistilledModel", "distill"]
