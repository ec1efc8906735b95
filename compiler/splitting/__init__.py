"""Split inference: where to cut a model between a client and a server, and both halves as modules."""

from __future__ import annotations
