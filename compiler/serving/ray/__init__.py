"""Serving on a Ray cluster: the HTTP application as a Ray Serve deployment."""

from __future__ import annotations

from compiler.serving.ray.deployment import deployment
from compiler.serving.ray.options import RayOptions, node_resources, required_resources

__all__ = ["RayOptions", "deployment", "node_resources", "required_resources"]
