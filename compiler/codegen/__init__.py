"""Kernels to machine code: TensorIR lowering, parallel builds, and the options that LLVM needs."""
