"""The domain of operators that models of our own making have, as of what the exporter's opset lacks."""

from __future__ import annotations

OWN_DOMAIN = "tensorwright"
