"""Phase 5: lower operators to kernels and fuse epilogues with their producers."""
