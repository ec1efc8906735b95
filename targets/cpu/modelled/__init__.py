"""A model of processors for kernels that cannot be timed: LLVM's scheduling models of the generated code, weighted by
how often each block runs, and a cache model of the loop nest."""
