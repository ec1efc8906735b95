"""Phase 5: operators become kernels, and epilogues join their producers."""
