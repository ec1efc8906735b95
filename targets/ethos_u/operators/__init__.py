"""The operators of the accelerator: one module per operator or family."""
