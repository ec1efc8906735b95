"""Kernels to machine code: TensorIR lowering, parallel builds, and what LLVM must be told."""
