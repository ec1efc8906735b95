"""Graph passes: one file per pass, registered by name, and `pipeline`, which lists the phases in order."""

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
