"""Compression of models under a limit on the loss of accuracy."""

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
