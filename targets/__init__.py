"""What the hardware is and how to build for it: one module a target."""

import schedules.engine  # noqa: F401  (loads the engine without torch)
