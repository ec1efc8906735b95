"""LLVM options that are required for correct code; imports nothing from TVM."""

LLVM_OPTIONS = ("-vectorize-loops:bool=0",)
"""The `cl-opt` of every target whose code LLVM generates.

LLVM 22's loop vectorizer reads `x[i % 8]` as `x[i]` if the loop is longer than 8 (any power of two): tiling rows of 8
to 16 computes wrong numbers, in TVM's own unscheduled build, too. Here the schedules write the vectors.
"""

# Attribute of kernels written for scalar code: LLVM's SLP vectorizer gathers the loads of several independent chains
# into vectors, which takes twice as long as the loads (traversal of decision trees on Zen 4).
SCALAR_CODE = "tensorwright.scalar_code"
SCALAR_OPTION = "-vectorize-slp:bool=0"

# Attribute of kernels whose schedule has already unrolled the loops that profit: LLVM would unroll their other short
# loops, too (borders, transforms), which doubles the compile time of a convolution of dynamic sizes and gains nothing.
KEPT_LOOPS = "tensorwright.kept_loops"
KEPT_LOOPS_OPTION = "-unroll-threshold-aggressive:uint=0"

KERNEL_OPTIONS = {KEPT_LOOPS: KEPT_LOOPS_OPTION, SCALAR_CODE: SCALAR_OPTION}
"""The LLVM option that each kernel attribute selects."""


def plain_cpu() -> dict[str, object]:
    """TVM's target for this machine's processor without any extensions."""
    return {"kind": "llvm", "cl-opt": list(LLVM_OPTIONS)}
