"""Frontends: import a trained model as a Relax module with named inputs and outputs."""

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
