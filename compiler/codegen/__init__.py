"""Kernels to machine code: TensorIR lowering, parallel builds, and the options that LLVM needs."""

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
