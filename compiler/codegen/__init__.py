"""Compilation of kernels to machine code: TensorIR lowering, parallel builds and LLVM options."""

import schedules.ir.load_tvm  # noqa: F401  (loads TVM without torch)
