"""Split inference: where to cut a model between a client and a server, and both halves as modules."""

from __future__ import annotations

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
