"""LLVM options that are required for correct code; imports nothing from TVM."""

LLVM_OPTIONS = ("-vectorize-loops:bool=0",)
"""The `cl-opt` of every target whose code LLVM generates.

LLVM 22's loop vectorizer reads `x[i % 8]` as `x[i]` where the loop is longer than 8 (any power of two): tiling rows of
8 to 16 gives wrong numbers, in TVM's own unscheduled build too. Here the schedules make the vectors.
"""

# An attribute of kernels that are written for scalar code: LLVM's vectorizer of straight-line code gathers what several
# independent chains load into vectors, which takes twice as long as the loads (walks of decision trees on Zen 4).
SCALAR_CODE = "tensorwright.scalar_code"
SCALAR_OPTION = "-vectorize-slp:bool=0"

# An attribute of kernels whose schedule has unrolled what pays: LLVM would unroll their other short loops too, those of
# borders and transforms, with which a convolution of dynamic sizes takes twice as long to compile and is no faster.
KEPT_LOOPS = "tensorwright.kept_loops"
KEPT_LOOPS_OPTION = "-unroll-threshold-aggressive:uint=0"

KERNEL_OPTIONS = {KEPT_LOOPS: KEPT_LOOPS_OPTION, SCALAR_CODE: SCALAR_OPTION}
"""The option of LLVM that each attribute of a kernel asks for."""


def plain_cpu() -> dict[str, object]:
    """TVM's target for this machine's processor without any extensions."""
    return {"kind": "llvm", "cl-opt": list(LLVM_OPTIONS)}
