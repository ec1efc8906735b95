"""What the accelerator can compute: one module an operator or a family of them."""
