"""Which rule serves a kernel, and the choice among algorithms."""
