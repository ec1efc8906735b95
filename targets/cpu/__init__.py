"""CPU targets compiled by LLVM: x86-64, ARM, RISC-V. The presets are data."""
