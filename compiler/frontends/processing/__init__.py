"""Processing of images and results as part of a model's graph."""

from compiler.frontends.processing.attach import fixed_shape, with_description, with_processing

__all__ = ["fixed_shape", "with_description", "with_processing"]
