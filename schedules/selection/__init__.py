"""Selection of the rule for a kernel, and of algorithms."""
