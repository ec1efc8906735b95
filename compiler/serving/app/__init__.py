"""The server as an ASGI application: Open Inference Protocol v2, OpenAI's routes, health, metrics, a status page."""

from __future__ import annotations
